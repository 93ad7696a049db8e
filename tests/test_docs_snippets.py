"""Every snippet of the pages at the root and of the manual: configs are built, Python runs, commands exist.

``<!-- not run: REASON -->`` before a block of Python leaves it out.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'
PAGES = [*(ROOT / name for name in ROOT_PAGES), *sorted((ROOT / 'docs').rglob('*.md'))]
NOTEBOOKS = sorted((ROOT / 'docs').rglob('*.ipynb'))
FENCED = re.compile(r'^( *)```(\w*)[^\n]*\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^ {4}\S.*\n)(?:^(?: {4}.*)?\n)*', re.MULTILINE)
NOT_RUN = re.compile(r'<!-- not run: \w.* -->\s*\Z')
PLACEHOLDER = re.compile(r'[A-Z]{3}|(^|/)my_|path/to')
PROGRAMS = 'make', 'mim', 'pip', 'python', 'tensorboard', '.'


def blocks():
    """(page:line, language, text) of each block of code; the language of an indented one is '' if it is no command."""
    for page in PAGES:
        text = page.read_text(encoding='utf-8')

        def place(start, page=page, text=text):
            return f'{page.relative_to(ROOT)}:{text[:start].count(chr(10)) + 1}'

        for block in FENCED.finditer(text):
            kept = not NOT_RUN.search(text[: block.start()])
            code = re.sub(rf'^{block[1]}', '', block[3], flags=re.MULTILINE)
            yield place(block.start()), block[2] if kept else 'not run', code
        without = FENCED.sub(lambda block: '\n' * block[0].count('\n'), text)
        for block in INDENTED.finditer(without):
            before = without[: block.start()].rstrip('\n').rsplit('\n', 1)[-1]
            if without[: block.start()].endswith('\n\n') and not re.match(r' *([-*]|\d\.|!!!|\?\?\?) ', before):
                code = re.sub(r'^ {4}', '', block[0], flags=re.MULTILINE)
                yield place(block.start()), 'bash' if program(code.split('\n')[0]) else '', code


def program(line):
    """The program that a line of a shell runs, or None; assignments of variables may come before it."""
    word = re.match(r'(?:[A-Z_]+=\S+ +)*(\S+)', line)
    return word[1] if word and (word[1] in PROGRAMS or re.match(r'(tools|\.ci)/', word[1])) else None


BLOCKS = list(blocks())
PYTHON = [(place, code) for place, language, code in BLOCKS if language == 'python']
CONFIGS = [block for block in PYTHON if re.search(r'^(_base_|model|custom_hooks) = ', block[1], re.MULTILINE)]
PROGRAM_TEXTS = [block for block in PYTHON if block not in CONFIGS]
COMMANDS = [(place, code) for place, language, code in BLOCKS if language == 'bash']


def each(found):
    return pytest.mark.parametrize('code', [pytest.param(code, id=place) for place, code in found])


@pytest.fixture
def no_initial_weights(monkeypatch):
    """Layers get no initial weights, which takes most of the time of building a full-size model."""
    for layer in (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention):
        monkeypatch.setattr(
            layer, 'reset_parameters' if hasattr(layer, 'reset_parameters') else '_reset_parameters', lambda layer: None
        )


def test_each_block_says_what_it_is():
    assert len(CONFIGS) > 10 and len(PROGRAM_TEXTS) > 5 and len(COMMANDS) > 10
    assert {language for _, language, _ in BLOCKS} <= {'python', 'bash', 'text', 'not run', ''}
    for place, language, code in BLOCKS:
        if not language:
            ast.parse(code), place  # a part of a config, say


@each(CONFIGS)
def test_what_a_config_configures_is_built(code, tmp_path, no_initial_weights):
    path = tmp_path / 'config.py'
    path.write_text(code.replace("'configs/", f"'{ROOT}/configs/"), encoding='utf-8')
    cfg = Config.fromfile(path)
    if 'model' in cfg:
        model = MODELS.build(cfg.model)
        assert any('uotod_mmdet' in type(part).__module__ for part in parts(model))
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    for backend in cfg.get('visualizer', {}).get('vis_backends', []):
        assert VISBACKENDS.get(backend['type']) is not None


def parts(model):
    """Modules of a detector, and the assigners and match costs of its heads."""
    for module in model.modules():
        yield module
        for name in ('assigner', 'matcher'):
            yield getattr(module, name, None)


@each(PROGRAM_TEXTS)
def test_python_gives_finite_numbers_and_names_what_is_ours(code, capsys):
    names = {'__name__': '__main__', **given(code)}
    before = set(names)
    exec(compile(code, '<snippet>', 'exec'), names)
    made = {name: value for name, value in names.items() if name not in before and name != '__builtins__'}
    tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        assert value.isfinite().all(), name
        if '.backward()' in code and value.requires_grad and value.is_leaf:
            assert value.grad.isfinite().all() and value.grad.abs().sum() > 0, name
    if 'loss' in tensors:
        assert tensors['loss'].dim() == 0 and tensors['loss'] > 0
    modules = [getattr(value, '__module__', type(value).__module__) for value in made.values()]
    modules += [getattr(value, '__name__', '') for value in made.values()] + [
        type(value).__module__ for value in made.values()
    ]
    assert any(str(module).startswith('uotod_mmdet') for module in modules), sorted(made)


def given(code):
    """What a snippet takes for granted: the head of another project."""
    from mmdet.models import DINOHead

    if 'CoDINOHead = on_plan(CoDINOHead' not in code:
        return {}
    return {'CoDINOHead': type('CoDINOHead', (DINOHead,), {'__module__': 'co_detr'})}


@each(COMMANDS)
def test_command_names_what_there_is(code):
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    for line in code.splitlines():
        words = shlex.split(re.sub(r'\s#.*', '', line))
        while words and re.match(r'[A-Z_]+=', words[0]):
            del words[0]
        if not words:
            continue
        assert program(line), f'{line}: not a command that this test knows'
        if words[0] == 'make':
            options = [word for word in words[1:] if '=' in word]
            assert set(words[1:]) - set(options) <= set(targets), line
            words = [*words[:1], *shlex.split(' '.join(word.split('=', 1)[1] for word in options))]
            tool = 'tools/train.py'
        elif words[:2] == ['python', '-c']:
            ast.parse(words[2])
            continue
        else:
            tool = next((word for word in words if word.startswith('tools/')), None)
            assert tool is None or (ROOT / tool).is_file(), line
        for word in words[1:]:
            if word.startswith('--') and tool:
                assert word.split('=')[0] in flags(tool), f'{line}: {tool} has no {word}'
            elif re.match(r'(configs|studies|docs|tests|tools)/', word) and not PLACEHOLDER.search(word):
                assert (ROOT / word).exists(), f'{line}: {word} is not there'


def flags(tool):
    """The flags of a tool, from its source and that of its helpers; of a script, those of what it starts."""
    stem = Path(tool).stem.removeprefix('dist_')
    files = [*(ROOT / 'tools').glob(f'{stem}*.py'), ROOT / 'uotod_mmdet/launch.py']
    return set(re.findall(r"'(--[a-z][\w-]*)'", ''.join(path.read_text(encoding='utf-8') for path in files)))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_executed_and_small(path):
    cells = [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output['output_type'] == 'error' for cell in cells for output in cell['outputs'])
    assert path.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    cells = [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']
    code = '\n\n'.join(''.join(cell['source']) for cell in cells)
    assert 'EPOCHS = ' in code
    program = tmp_path / 'notebook.py'
    program.write_text(re.sub(r'EPOCHS = \d+', 'EPOCHS = 2', code), encoding='utf-8')
    env = {**os.environ, 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'bbox_mAP':" in done.stdout
