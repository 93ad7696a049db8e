"""The manual: every class of ours is in the reference, and every message that it explains is one of the package."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uotod_mmdet import registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
OURS = [getattr(registry, name) for name in dir(registry) if isinstance(getattr(registry, name), registry.Registry)]


def documented():
    """Paths of the objects that the pages of the reference show."""
    pages = (DOCS / 'api').glob('*.md')
    return {path for page in pages for path in re.findall(r'^::: (\S+)$', page.read_text(encoding='utf-8'), re.M)}


def registered():
    """Our classes in the registries, without those that tests or users registered."""
    for ours in OURS:
        ours.import_from_location()
        for name, cls in ours.module_dict.items():
            if cls.__module__.startswith('uotod_mmdet.'):
                yield name, cls


def test_every_registered_class_is_in_the_reference():
    assert {ours.name for ours in OURS} == {'model', 'task util', 'dataset', 'hook'}
    classes = dict(registered())
    assert len(classes) > 45
    missing = [
        name for name, cls in classes.items() if '.'.join([*cls.__module__.split('.')[:2], name]) not in documented()
    ]
    assert not missing, f'Add them to a page of docs/api: {missing}'


def test_what_the_reference_shows_has_a_docstring():
    for path in documented():
        module, name = path.rsplit('.', 1)
        found = getattr(importlib.import_module(module), name)
        assert found.__doc__, path


def texts(path):
    """Texts of a Python file but docstrings, as they are printed, between the values that are put into them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.value


@pytest.fixture(scope='module')
def all_texts():
    files = [path for folder in ('uotod_mmdet', 'tools', 'configs') for path in (ROOT / folder).rglob('*.py')]
    return [text for path in files for text in texts(path)]


MESSAGES = re.findall(r'^### `(.+?)`$', (DOCS / 'troubleshooting.md').read_text(encoding='utf-8'), re.M)


@pytest.mark.parametrize('message', MESSAGES)
def test_message_of_the_page_on_troubleshooting_is_in_the_code(message, all_texts):
    assert any(message in text for text in all_texts), f'No text of uotod_mmdet, tools or configs holds {message!r}.'


def test_what_the_manual_includes_is_there():
    """Here, too, without mkdocs: who renames a heading of README.md should learn of it at once."""
    pages = ''.join(page.read_text(encoding='utf-8') for page in DOCS.glob('*.md'))
    included = re.findall(r'^<!-- include (\S+): (.+?)(?: \| (?:table|python))? -->$', pages, re.M)
    assert included
    for path, heading in included:
        assert heading in (ROOT / path).read_text(encoding='utf-8').splitlines(), f'{path} has no heading {heading!r}'


def test_troubleshooting_says_cause_and_fix_of_many_messages_each_once():
    assert len(MESSAGES) > 50
    assert len(set(MESSAGES)) == len(MESSAGES)
    for section in re.split(r'^(?=##)', (DOCS / 'troubleshooting.md').read_text(encoding='utf-8'), flags=re.M):
        if section.startswith('### `'):
            assert '**Cause.** ' in section and '**Fix.** ' in section, section


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('mkdocs') is None, reason='the extra docs is not installed')
def test_the_manual_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    env = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = {path: path.read_text(encoding='utf-8') for path in tmp_path.rglob('*.html')}
    reference = ''.join(text for path, text in pages.items() if path.parent.name == 'api')
    for name, cls in registered():
        assert f'id="{".".join([*cls.__module__.split(".")[:2], name])}"' in reference
    for path, text in pages.items():
        assert not re.search(
            r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//|<link[^>]* href="?(?:https?:)?//', text
        ), path
