"""What is packed (setup.py), what tells others about it (model index, citation), and the workflows. Without network."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

import uotod_mmdet
from uotod_mmdet.ops import native

ROOT = Path(__file__).resolve().parent.parent
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
METAFILES = [yaml.safe_load((ROOT / name).read_text()) for name in INDEX['Import']]
MODELS = {model['Name']: model for metafile in METAFILES for model in metafile['Models']}
PACKED = (
    'setup.py pyproject.toml MANIFEST.in LICENSE README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff model-index.yml'
)


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def copy_source(copy):
    """What is packed, in a folder of its own: building leaves folders behind, and what is in these gets packed, too."""
    for folder in ('uotod_mmdet', 'configs', 'tools'):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__', '*.so'))
    for name in PACKED.split():
        shutil.copy(ROOT / name, copy)
    (copy / 'tests').mkdir()
    (copy / 'tests' / 'test_x.py').touch()
    return copy


def build_wheel(source, folder, **env):
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '--no-cache-dir']
    done = subprocess.run([*pip, '-w', folder, source], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob('uotod_mmdet-*.whl')
    return wheel


def unpack(wheel, folder):
    """Unpack a wheel and return the names of its files without those of its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        return {name for name in archive.namelist() if '.dist-info/' not in name}


def files_of(folder):
    return [path for path in (ROOT / folder).rglob('*') if path.is_file() and '__pycache__' not in path.parts]


def expected_files():
    package = [path for path in files_of('uotod_mmdet') if path.suffix in ('.py', '.cpp', '.h')]
    tools = [path for path in files_of('tools') if not re.match(r'benchmark|check_|setup_env|study', path.name)]
    shipped = [ROOT / 'model-index.yml', *files_of('configs'), *tools]
    return {
        'uotod_mmdet/py.typed',
        *(str(path.relative_to(ROOT)) for path in package),
        *(f'uotod_mmdet/.mim/{path.relative_to(ROOT)}' for path in shipped),
    }


@pytest.mark.slow
def test_wheel_with_the_compiled_part_serves_all_pythons(tmp_path):
    wheel = build_wheel(copy_source(tmp_path / 'source'), tmp_path)
    assert re.search(r'-cp310-abi3-(?!any)\w+\.whl$', wheel.name)
    names = unpack(wheel, tmp_path)
    assert names - expected_files() == {'uotod_mmdet/_native.abi3.so'}
    assert expected_files() <= names


@pytest.mark.slow
def test_wheel_of_a_system_without_compiler_lacks_the_compiled_part_only(tmp_path):
    wheel = build_wheel(copy_source(tmp_path / 'source'), tmp_path, CC='/nowhere/cc', CXX='/nowhere/c++')
    assert unpack(wheel, tmp_path) == expected_files()


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the pure wheel, as pip installs it."""
    folder = tmp_path_factory.mktemp('installed')
    wheel = build_wheel(copy_source(folder / 'source'), folder, UOTOD_PURE='1')
    assert wheel.name.endswith('-py3-none-any.whl')
    assert unpack(wheel, folder) == expected_files()
    return folder


@pytest.mark.slow
def test_pure_wheel_requires_nothing_that_mmdet_forks_replace(installed):
    (metadata,) = installed.glob('*.dist-info/METADATA')
    lines = metadata.read_text().splitlines()
    assert 'License: Apache-2.0' in lines or 'License-Expression: Apache-2.0' in lines
    required = [line.split()[1] for line in lines if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert sorted(required) == ['filelock', 'numpy', 'packaging', 'scipy', 'tqdm']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['color_boxes/gfl_tiny_soft.py', 'coco/gfl_r50_fpn_1x_soft.py'])
def test_config_inherits_from_a_copy_of_the_installed_configs(tmp_path, installed, name):
    shutil.copytree(installed / 'uotod_mmdet' / '.mim' / 'configs', tmp_path / 'uotod_configs')  # as README says
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = 'uotod_configs/{name}'\nown = 1\n")
    assert Config.fromfile(own).to_dict() == {**Config.fromfile(ROOT / 'configs' / name).to_dict(), 'own': 1}


@pytest.mark.slow
def test_sdist_builds_the_same(tmp_path):
    command = [sys.executable, 'setup.py', '-q', 'sdist', '-d', str(tmp_path)]
    done = subprocess.run(command, cwd=copy_source(tmp_path / 'source'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Deprecat' not in done.stderr
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix('.tar.gz')
    assert not (unpacked / 'tests').exists()
    assert set(PACKED.split()) <= {path.name for path in unpacked.iterdir()}
    wheel = build_wheel(unpacked, tmp_path, UOTOD_PURE='1')
    assert unpack(wheel, tmp_path / 'wheel') == expected_files()


def test_extra_mmdet_leaves_mmcv_to_the_error_message():
    code = 'import json, setuptools; setuptools.setup = lambda **words: print(json.dumps(words["extras_require"])); '
    code += 'exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "setup"})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True)
    packages = [re.match(r'[\w-]+', requirement)[0] for requirement in json.loads(done.stdout)['mmdet']]
    assert packages == ['mmengine', 'mmdet', 'setuptools']


@pytest.mark.parametrize('capability', ['DEFAULT', 'NO AVX'])  # by the version of torch
@pytest.mark.skipif(os.uname().machine != 'x86_64', reason='compiled for AVX2 on x86 only')
def test_compiled_part_is_not_loaded_on_a_cpu_without_avx2(monkeypatch, recwarn, capability):
    monkeypatch.setattr(native, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(native.ctypes, 'CDLL', lambda path: pytest.fail(f'loaded {path}'))
    assert native._load() is None
    assert not recwarn


@pytest.mark.skipif(native.library is None, reason='no compiled part was built')
def test_compiled_part_that_does_not_load_is_reported_with_the_reason(monkeypatch):
    def refuse(path):
        raise OSError('libgomp.so.1: cannot open shared object file')

    monkeypatch.setattr(native.ctypes, 'CDLL', refuse)
    with pytest.warns(
        UserWarning, match=r'does not load \(libgomp.so.1: cannot .*\) and is not used.* Remove that file'
    ):
        assert native._load() is None


def test_index_lists_every_config_beside_a_metafile_once():
    metafiles = sorted((ROOT / 'configs').glob('*/metafile.yml'))
    assert INDEX['Import'] == [str(path.relative_to(ROOT)) for path in metafiles]
    configs = {str(path.relative_to(ROOT)) for metafile in metafiles for path in metafile.parent.glob('*.py')}
    assert {model['Config'] for model in MODELS.values()} == configs
    assert len(MODELS) == sum(len(metafile['Models']) for metafile in METAFILES)
    for name, model in MODELS.items():
        assert Path(model['Config']).stem == name == name.lower()  # mim asks for names in lower case
    collections = {collection['Name'] for metafile in METAFILES for collection in metafile.get('Collections', [])}
    assert {model['In Collection'] for model in MODELS.values()} == collections


@pytest.mark.parametrize('name', [name for name, model in MODELS.items() if 'Results' in model])
def test_metrics_of_the_index_are_those_of_the_evidence(name):
    told = MODELS[name]['Metadata']
    evidence = (ROOT / 'docs' / 'evidence.md').read_text()
    section = re.search(rf'^### {re.escape(told["Study"])}: color_boxes$(.*?)(?=^##|\Z)', evidence, re.M | re.S)[1]
    row = re.search(rf'^\| {re.escape(told["Arm"])} \| (\d+) \| ([\d.]+) ', section, re.M)
    (result,) = MODELS[name]['Results']
    assert (told['Runs'], result['Metrics']) == (int(row[1]), {'box AP': round(100 * float(row[2]), 1)})
    runs = [json.loads(line) for path in (ROOT / 'studies' / 'results').glob('*.jsonl') for line in path.open()]
    epochs = {run['epochs'] for run in runs if run['arm'] == told['Arm'] and run['data'] == 'color_boxes'}
    assert epochs == {told['Epochs']}


def test_citation_names_this_version_and_the_papers():
    citation = read_yaml('CITATION.cff')
    assert citation['version'] == uotod_mmdet.__version__
    assert citation['license'] == 'Apache-2.0'
    assert [(paper['authors'][0]['family-names'], paper['year']) for paper in citation['references']] == [
        ('De Plaen', 2023),
        ('Li', 2020),
        ('Zhang', 2021),
    ]


@pytest.mark.parametrize('path', sorted(str(path.relative_to(ROOT)) for path in (ROOT / '.github').rglob('*.yml')))
def test_commands_of_workflows_exist(path):
    parsed = read_yaml(path)
    steps = [step for job in parsed.get('jobs', {}).values() for step in job['steps']] + parsed.get('runs', {}).get(
        'steps', []
    )
    commands = '\n'.join(step.get('run', '') for step in steps)
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    assert set(re.findall(r'\bmake ([\w-]+)', commands)) <= set(targets)
    actions = [step['uses'] for step in steps if step.get('uses', '').startswith('./')]
    assert all((ROOT / action / 'action.yml').exists() for action in actions)
