"""Making the environment (tools/setup_env.py). No test needs a network."""

import collections
import importlib.util
import json
import os
import re
import select
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'tools' / 'setup_env.py'


def load_script():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup_env = load_script()


ORIGINALS = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
FORKS = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}


def seen(torch, **versions):
    """What the probe sees where these distributions are installed."""
    names = dict.fromkeys(('torch', 'cv2', 'mmcv-lite', 'uotod_mmdet', *ORIGINALS, *FORKS))
    modules = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv', 'onedl-mmdetection': 'mmdet'}
    foreign = [modules[name] for name in versions if name in modules and modules[name] not in versions]
    env = {'python': [3, 11, 0], 'tag': 'cp311', 'platform': 'p', 'include': '.', 'foreign': foreign}
    return {**env, 'versions': {**names, 'torch': torch, **versions}}


@pytest.fixture
def stub(tmp_path):
    """Make an environment whose Python is a shell script."""

    def make(script, torch=None, lineage=None):
        setup = setup_env.Setup(tmp_path / 'venv', torch, tmp_path / 'cache', lineage)
        for folder in (setup.python.parent, setup.cache):
            folder.mkdir(parents=True, exist_ok=True)
        setup.python.write_text('#!/bin/sh\n' + script)
        setup.python.chmod(0o755)
        setup.env = {**seen('2.13.0+cpu'), 'include': str(tmp_path)}
        return setup

    return make


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A PATH without any command."""
    (tmp_path / 'empty').mkdir()
    monkeypatch.setenv('PATH', str(tmp_path / 'empty'))
    monkeypatch.delenv('CXX', raising=False)


def store(folder, *names):
    """Put a wheel with these files into a cache folder, as setup_env does after compiling."""
    build = folder / 'build-x'
    build.mkdir(parents=True)
    wheel = build / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        for name in names:
            archive.writestr(name, name * 1000)
    return setup_env.store_wheel(wheel, folder)


COMPILED = ('mmcv/__init__.py', 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so')


def test_whole_cached_wheel_is_used(tmp_path, capsys):
    wheel = store(tmp_path, *COMPILED)
    assert setup_env.cached_wheel(tmp_path) == wheel
    assert capsys.readouterr().out == ''


def truncate(wheel):
    os.truncate(wheel, wheel.stat().st_size // 2)


def garble(wheel):
    """Change a byte of the compressed data and promise the changed file."""
    content = bytearray(wheel.read_bytes())
    content[len(content) // 3] ^= 0xFF
    wheel.write_bytes(content)
    setup_env.checksum_file(wheel).write_text(setup_env.checksum(wheel))


def forge_checksum(wheel):
    setup_env.checksum_file(wheel).write_text('0' * 64 + '  ' + wheel.name)


def lose_checksum(wheel):
    setup_env.checksum_file(wheel).unlink()


@pytest.mark.parametrize(
    ('names', 'damage'),
    [
        (COMPILED, truncate),
        (COMPILED, garble),
        (COMPILED, forge_checksum),
        (COMPILED, lose_checksum),
        (('mmcv/__init__.py',), lambda wheel: None),
    ],
)
def test_corrupt_cached_wheel_is_reported_and_removed(tmp_path, capsys, names, damage):
    wheel = store(tmp_path, *names)
    damage(wheel)
    assert setup_env.cached_wheel(tmp_path) is None
    (message,) = capsys.readouterr().out.splitlines()
    assert str(wheel) in message and 'is damaged or has no compiled ops; it is removed' in message
    assert list(tmp_path.glob('mmcv-*')) == []


def test_wheels_of_different_torch_builds_do_not_meet(tmp_path):
    folders = {
        setup_env.wheel_folder(tmp_path, 'cp311', 'linux-x86_64', torch, lineage['mmcv'], ops)
        for torch in ('2.13.0+cpu', '2.13.0+cu130', '2.12.0+cpu')
        for lineage in setup_env.LINEAGES.values()
        for ops in ('cpu', 'cuda')
    }
    assert len(folders) == 12


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for name in ('UOTOD_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert setup_env.cache_dir() == tmp_path / 'home' / '.cache' / 'uotod_mmdet'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert setup_env.cache_dir() == tmp_path / 'xdg' / 'uotod_mmdet'
    monkeypatch.setenv('UOTOD_CACHE', str(tmp_path / 'own'))
    assert setup_env.cache_dir() == tmp_path / 'own'


def test_missing_compiler_is_named_with_its_cure(no_compiler, monkeypatch):
    with pytest.raises(setup_env.SetupError, match=r'no C\+\+ compiler .*apt install g\+\+'):
        setup_env.require_compiler(include='.')
    monkeypatch.setenv('CXX', 'nonesuch -O2')
    with pytest.raises(setup_env.SetupError, match='looked for nonesuch -O2'):
        setup_env.require_compiler(include='.')


def test_compiler_of_CXX_is_taken_with_its_arguments(no_compiler, monkeypatch, tmp_path):
    compiler = tmp_path / 'my++'
    compiler.write_text('#!/bin/sh\n')
    compiler.chmod(0o755)
    (tmp_path / 'Python.h').touch()
    monkeypatch.setenv('CXX', f'{compiler} -O2')
    assert setup_env.require_compiler(include=tmp_path) == f'{compiler} -O2'
    with pytest.raises(setup_env.SetupError, match='headers are missing'):
        setup_env.require_compiler(include=tmp_path / 'empty')


def test_missing_compiler_stops_the_script_before_it_makes_anything(no_compiler, tmp_path):
    # No such torch exists, so the script cannot take the one of this Python, with its mmcv.
    flags = ['--venv', tmp_path / 'venv', '--torch', '0.0.0']
    env = dict(os.environ, UOTOD_CACHE=str(tmp_path / 'cache'))
    done = subprocess.run([sys.executable, SCRIPT, *flags], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith('setup_env: mmcv must be compiled, but there is no C++ compiler')
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'venv').exists()


def test_full_disk_stops_the_script_before_it_makes_anything(monkeypatch, tmp_path):
    usage = collections.namedtuple('usage', 'free')(2 * setup_env.GB)
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: usage)
    monkeypatch.setattr(setup_env, 'has_cuda', lambda: False)
    with pytest.raises(setup_env.SetupError, match='needs about 6 GB of disk'):
        setup_env.Setup(tmp_path / 'venv', '0.0.0', tmp_path / 'cache').make()
    assert not (tmp_path / 'venv').exists()


def test_python_without_the_venv_module_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(setup_env.SetupError, match='apt install python3-venv'):
        setup_env.Setup(tmp_path / 'venv', None, tmp_path / 'cache').make()
    assert not (tmp_path / 'venv').exists()


def test_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / 'photo.jpg').touch()
    with pytest.raises(setup_env.SetupError, match='is not a virtual environment'):
        setup_env.Setup(tmp_path / 'venv', None, tmp_path / 'cache').make()
    assert (tmp_path / 'venv' / 'photo.jpg').exists()


@pytest.mark.parametrize(
    ('asked', 'prefix', 'shares'), [(None, '/usr', True), ('1.0', '/usr', False), (None, '/a_venv', False)]
)
def test_torch_of_the_running_python_is_shared_unless_another_is_asked_for(
    monkeypatch, tmp_path, asked, prefix, shares
):
    assert shares_torch(monkeypatch, tmp_path, seen('2.5.0', mmcv='2.1.0'), asked, prefix) == shares


def shares_torch(monkeypatch, tmp_path, found, asked=None, prefix='/usr', lineage=None):
    """Say whether a new environment sees the packages of the Python that makes it, where these are found."""
    monkeypatch.setattr(setup_env, 'probe', lambda python: found)
    monkeypatch.setattr(setup_env.sys, 'base_prefix', '/usr')
    monkeypatch.setattr(setup_env.sys, 'prefix', prefix)
    monkeypatch.setattr(setup_env.Setup, 'require_build', lambda setup, include: None)
    setup = setup_env.Setup(tmp_path / 'venv', asked, tmp_path / 'cache', lineage)
    setup.check()
    return setup.shares_torch


@pytest.mark.parametrize(('lineage', 'shares'), [(None, True), ('openmmlab', True), ('onedl', False)])
def test_packages_of_the_other_lineage_are_not_shared(monkeypatch, tmp_path, lineage, shares):
    assert shares_torch(monkeypatch, tmp_path, seen('2.5.0', **ORIGINALS), lineage=lineage) == shares


def test_lineage_that_is_asked_for_is_installed(stub, monkeypatch):
    compiled = []
    monkeypatch.setattr(setup_env.Setup, 'compile_mmcv', lambda setup, *what: compiled.append(what) or 'a.whl')
    setup = stub('test "$1" = -c && echo 2.13.0+cpu None || echo "$@"', lineage='onedl')
    for step in (setup.install_torch, setup.install_mmengine, setup.install_mmcv, setup.install_packages):
        step()
    (what,) = compiled
    assert what[0] == 'onedl-mmcv==2.3.6' and what[1].name.endswith('-torch2.13.0+cpu-onedl-mmcv2.3.6-cpu')
    commands = setup.log.read_text()
    assert 'onedl-mmengine>=' in commands and 'onedl-mmdetection>=' in commands
    assert not re.search(r'[ \'](mmengine|mmcv|mmdet)[>=]', commands)


def test_lineage_that_is_there_is_completed(stub):
    setup = stub('')
    setup.env = seen('2.13.0', **{'onedl-mmengine': '0.10.12'})
    setup.check_lineage(setup.env)
    assert setup.lineage == 'onedl'


@pytest.mark.parametrize(('there', 'asked'), [(ORIGINALS, 'onedl'), (FORKS, 'openmmlab')])
def test_environment_of_the_other_lineage_is_left_alone(stub, there, asked):
    setup = stub('', lineage=asked)
    setup.env = seen('2.13.0', **there)
    with pytest.raises(setup_env.SetupError) as caught:
        setup.check()
    names = ', '.join(there)
    assert str(caught.value) == (
        f'{setup.venv} has {names}, which the lineage {asked} does not go with. Choose another folder (--venv; make: '
        'VENV=...).'
    )


def test_environment_of_the_other_lineage_is_not_ready(stub):
    setup = stub(f'exec "{sys.executable}" "$@"')
    setup.write_stamp()
    there = next(name for name in setup_env.LINEAGES if setup_env.installed_from(name, setup.env['versions']))
    for lineage in setup_env.LINEAGES:
        assert stub(f'exec "{sys.executable}" "$@"', lineage=lineage).is_ready() == (lineage == there)


def test_both_lineages_in_one_environment_are_named_with_their_cure(stub):
    setup = stub('')
    setup.env = seen('2.13.0', **FORKS, mmcv='2.1.0')
    with pytest.raises(
        setup_env.SetupError, match='mmcv and onedl-mmcv are both installed for .*both bring the module'
    ):
        setup.check()


def test_each_lineage_has_an_environment_of_its_own():
    assert "--venv '.venv'" in make('-n', '-C', ROOT, 'env').stdout
    onedl = make('-n', '-C', ROOT, 'test', 'LINEAGE=onedl').stdout
    assert "--venv '.venv-onedl' --lineage 'onedl'" in onedl and "'.venv-onedl/bin/python' -m pytest" in onedl


def test_missing_network_is_named_with_its_cure(stub, monkeypatch):
    for name, value in {'INDEX_URL': 'http://127.0.0.1:9/simple', 'RETRIES': '1', 'EXTRA_INDEX_URL': ''}.items():
        monkeypatch.setenv('PIP_' + name, value)
    # It must never uninstall anything: this is the Python of the tests.
    setup = stub(f'case "$*" in *uninstall*) exit;; esac; exec "{sys.executable}" "$@"', torch='0.0.1')
    monkeypatch.setattr(setup_env, 'torch_candidates', lambda version, cuda: [('torch==' + version, [])])
    cure = 'pip cannot reach its package index. Connect to the network, or name a mirror in PIP_INDEX_URL or a folder'
    for step, failed in (
        (setup.install_torch, 'torch 0.0.1 could not be installed. '),
        (lambda: setup.pip('download', '--no-deps', 'nonesuch'), '"pip download nonesuch" failed with exit code 1. '),
    ):
        with pytest.raises(setup_env.SetupError) as caught:
            step()
        assert str(caught.value).startswith(failed) and cure in str(caught.value)


def test_failure_with_a_network_does_not_blame_the_network(tmp_path):
    log = tmp_path / 'log'
    log.write_text("$ pip a\nconnection broken by 'NewConnectionError'\n\n$ pip b\nERROR: No matching distribution\n")
    assert setup_env.network_hint(log) == ''


def test_stamp_counts_only_while_nothing_has_changed(stub):
    setup = stub(f'exec "{sys.executable}" "$@"')
    assert not setup.is_ready()
    setup.write_stamp()
    torch = setup.env['versions']['torch']
    assert setup.is_ready()

    assert stub(f'exec "{sys.executable}" "$@"', torch=torch).is_ready()
    assert not stub(f'exec "{sys.executable}" "$@"', torch='0.0.0').is_ready()

    stamp = setup.stamp.read_text()
    setup.stamp.write_text(stamp.replace(f'"{torch}"', '"1.0"'))  # as if another torch had come since
    assert not setup.is_ready()
    setup.stamp.write_text(stamp[: len(stamp) // 2])  # killed while writing
    assert not setup.is_ready()
    setup.stamp.write_text(stamp)
    setup.python.write_text('#!/nonesuch\n')
    assert not setup.is_ready()


def test_cpu_build_of_torch_is_tried_first_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(setup_env.sys, 'platform', 'linux')
    requirements = [requirement for requirement, _ in setup_env.torch_candidates('2.13.0', cuda=False)]
    assert requirements == ['torch==2.13.0+cpu', 'torch==2.13.0+cpu', 'torch==2.13.0']
    assert setup_env.torch_candidates('2.13.0', cuda=True) == [('torch==2.13.0', [])]
    (_, own), (_, index) = setup_env.torch_candidates('2.13.0+cu126', cuda=True)
    assert own == [] and index[-1].endswith('/cu126')


def test_version_without_local_part_asks_for_any_build():
    assert setup_env.matches('2.13.0+cpu', '2.13.0')
    assert setup_env.matches('2.13.0', '2.13.0')
    assert not setup_env.matches('2.13.0', '2.13.0+cpu')
    assert not setup_env.matches('2.13.01', '2.13.0')


def test_installed_torch_is_pinned_and_forks_are_respected(stub):
    setup = stub('echo "$@"')
    setup.env['foreign'] = ['mmengine', 'mmcv', 'mmdet']
    for step in (setup.install_torch, setup.install_mmengine, setup.install_mmcv, setup.install_packages):
        step()
    commands = [line for line in setup.log.read_text().splitlines() if line.startswith('-m pip')]
    assert len(commands) == 2
    assert all(line.startswith('-m pip install torch==2.13.0+cpu setuptools') for line in commands)
    assert not any(name in line for line in commands for name in ('mmengine', 'mmcv=', 'mmdet>='))


def test_library_that_cv2_misses_is_named_with_its_package(stub):
    error = 'ImportError: libGL.so.1: cannot open shared object file'
    setup = stub(f'test "$1" = -m || {{ echo "{error}" >&2; exit 1; }}')
    with pytest.raises(setup_env.SetupError, match=f'OpenCV does not import: {error}.*apt install libgl1 libglib2.0-0'):
        setup.install_mmengine()


def test_failed_compile_shows_what_the_compiler_said_and_leaves_nothing(stub, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv('CXX', 'true')
    monkeypatch.setenv('UOTOD_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'Python.h').touch()
    setup = stub(
        'echo "x.cpp: error: no such thing"; echo "ninja: build stopped: subcommand failed."\nseq 100000 100100; exit 3'
    )
    folder = tmp_path / 'cache' / 'wheels' / 'any'
    monkeypatch.setattr(setup_env.Setup, 'make', lambda _: setup.compile_mmcv('mmcv==2.1.0', folder, 'cpu'))
    message = setup_env.main([])
    assert message == 'setup_env: "pip wheel mmcv==2.1.0" failed with exit code 3.'
    error = capsys.readouterr().err
    assert str(setup.log) in error and 'x.cpp: error: no such thing' in error and '100100' not in error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(('standard', 'flags'), [('17', '-std=c++17'), ('20', '-std=c++17 -std=c++20')])
def test_mmcv_is_compiled_with_the_standard_that_torch_needs(stub, monkeypatch, tmp_path, standard, flags):
    monkeypatch.setenv('CXX', 'echo')
    (tmp_path / 'Python.h').touch()
    header = f'#error C++{standard} or later compatible compiler is required to use ATen.'
    setup = stub(f'test "$1" = -c && echo "{header}" || {{ $CXX -c x.cpp -std=c++17; exit 3; }}')
    with pytest.raises(setup_env.SetupError):
        setup.compile_mmcv('mmcv==2.1.0', tmp_path / 'wheels', 'cpu')
    assert f'-c x.cpp {flags}\n' in setup.log.read_text()


@pytest.mark.slow
def test_stopped_setup_stops_what_it_started(stub, tmp_path):
    alive = tmp_path / 'alive'
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    env = seen('2.13.0+cpu', mmcv='2.1.0')
    # Its pip has a child, as the compiler would be, that holds the pipe open.
    stub(f'test "$1" = -m || {{ echo \'{json.dumps(env)}\'; exit; }}; (echo on; sleep 60) > {alive} & wait')
    command = [sys.executable, SCRIPT, '--venv', tmp_path / 'venv']
    process = subprocess.Popen(command, env=dict(os.environ, UOTOD_CACHE=str(tmp_path)), stderr=subprocess.PIPE)
    assert select.select([reader], [], [], 90)[0] and os.read(reader, 9) == b'on\n'
    process.terminate()
    assert process.communicate(timeout=90)[1] == b'setup_env: stopped\n' and process.returncode == 1
    assert select.select([reader], [], [], 90)[0] and os.read(reader, 9) == b''
    os.close(reader)


def make(*arguments, **options):
    """Run `make` with no set-up of the environment."""
    return subprocess.run(['make', *arguments, 'PYTHON=true'], capture_output=True, text=True, **options)


def recipe(target):
    """What `make` would run for a target."""
    return make('-n', '-C', ROOT, target, 'VENV=/venv').stdout


def test_all_places_ask_for_the_same_python():
    def found(pattern, path):
        (version,) = set(re.findall(pattern, (ROOT / path).read_text(encoding='utf-8')))
        return tuple(map(int, re.findall(r'\d+', version) if '.' in version else (version[0], version[1:])))

    versions = {
        found(r"python_requires='>=([\d.]+)'", 'setup.py'),
        found(r'Python (\d[\d.]+) or later', 'README.md'),
        found(r'Python (\d[\d.]+) or later', 'CONTRIBUTING.md'),
        found(r'Python (\d[\d.]+) or later', 'tools/setup_env.py'),
        found(r"target-version = 'py(\d+)'", 'pyproject.toml'),
        found(r"python_version = '([\d.]+)'", 'pyproject.toml'),
    }
    assert len(versions) == 1
    (version,) = versions
    assert re.findall(r'\((\d), (\d+)\) or os.name|>= \[(\d), (\d+)\]', SCRIPT.read_text()) == [
        (*map(str, version), '', ''),
        ('', '', *map(str, version)),
    ]


def test_a_fresh_environment_has_the_tools_of_make_lint():
    tools = {
        module or script for module, script in re.findall(r"/venv/bin/(?:python' -m ([\w-]+)|([\w-]+))", recipe('lint'))
    }
    assert tools == {'ruff', 'mypy', 'clang-format'}
    extras = re.search(r'\{ROOT\}\[([\w,]+)\]', SCRIPT.read_text())[1].split(',')
    code = 'import json, setuptools; setuptools.setup = lambda **words: print(json.dumps(words["extras_require"])); '
    code += 'exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "setup"})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True)
    packages = json.loads(done.stdout)
    installed = {re.match(r'[\w-]+', requirement)[0] for extra in extras for requirement in packages[extra]}
    assert tools <= installed


def test_continuous_integration_tests_before_it_checks_style():
    commands = [line for line in (ROOT / '.ci' / 'run').read_text().splitlines() if line.startswith('make ')]
    assert commands == ['make test', 'make lint', 'make docs']


def test_make_quick_leaves_out_what_trains():
    assert "-m 'not slow'" in recipe('quick')
    assert 'slow' not in recipe('test')


def run_sanitize(folder, library, maps):
    """Run `make sanitize` with a Python that leaves this library and has these files loaded."""
    built = folder / 'build' / 'sanitize' / 'lib' / 'uotod_mmdet'
    python = folder / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\ntest "$1" = -c && {{ echo {maps}; exit; }}\n'
        f'mkdir -p {built} && echo {library} > {built}/_native.so\n'
    )
    (folder / 'bin' / 'pytest').write_text('#!/bin/sh\necho tests ran\n')
    for script in python.parent.iterdir():
        script.chmod(0o755)
    shutil.copy(ROOT / 'Makefile', folder)
    return make('sanitize', f'VENV={folder}', 'CXX=true', cwd=folder)


def test_sanitizing_runs_the_tests_where_the_sanitized_library_is_loaded(tmp_path):
    done = run_sanitize(tmp_path, '__asan_init', tmp_path / 'build/sanitize/lib/uotod_mmdet/_native.so')
    assert done.returncode == 0 and 'tests ran' in done.stdout


@pytest.mark.parametrize(
    ('library', 'loaded', 'message'),
    [
        ('plain', 'build/sanitize/lib/uotod_mmdet/_native.so', 'was not built with the sanitizers'),
        ('__asan_init', 'uotod_mmdet/_native.so', 'is not loaded'),
        ('__asan_init', 'libc.so.6', 'is not loaded'),
    ],
)
def test_sanitizing_fails_without_the_sanitized_library(tmp_path, library, loaded, message):
    done = run_sanitize(tmp_path, library, tmp_path / loaded)
    assert done.returncode and message in done.stderr and 'tests ran' not in done.stdout
