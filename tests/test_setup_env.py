"""Making the environment (tools/setup_env.py) and the package's wheel (setup.py). No test needs a network."""

import collections
import importlib.util
import os
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


def test_whole_cached_wheel_is_used(tmp_path):
    wheel = store(tmp_path, *COMPILED)
    messages = []
    assert setup_env.cached_wheel(tmp_path, messages.append) == wheel
    assert messages == []


def truncate(wheel):
    os.truncate(wheel, wheel.stat().st_size // 2)


def forge_checksum(wheel):
    setup_env.checksum_file(wheel).write_text('0' * 64 + '  ' + wheel.name)


def lose_checksum(wheel):
    setup_env.checksum_file(wheel).unlink()


@pytest.mark.parametrize(
    ('names', 'damage', 'message'),
    [
        (COMPILED, truncate, 'is damaged'),
        (COMPILED, forge_checksum, 'does not match its sha256 file'),
        (COMPILED, lose_checksum, 'does not match its sha256 file'),
        (('mmcv/__init__.py',), lambda wheel: None, 'has no compiled ops'),
    ],
)
def test_corrupt_cached_wheel_is_reported_and_removed(tmp_path, names, damage, message):
    wheel = store(tmp_path, *names)
    damage(wheel)
    messages = []
    assert setup_env.cached_wheel(tmp_path, messages.append) is None
    assert len(messages) == 1 and str(wheel) in messages[0] and message in messages[0]
    assert list(tmp_path.glob('mmcv-*')) == []


def test_wheels_of_different_torch_builds_do_not_meet(tmp_path):
    folders = {
        setup_env.wheel_folder(tmp_path, 'cp311', 'linux-x86_64', torch, ops)
        for torch in ('2.13.0+cpu', '2.13.0+cu130', '2.12.0+cpu')
        for ops in ('cpu', 'cuda')
    }
    assert len(folders) == 6


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for name in ('UOTOD_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert setup_env.cache_dir() == tmp_path / 'home' / '.cache' / 'uotod_mmdet'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert setup_env.cache_dir() == tmp_path / 'xdg' / 'uotod_mmdet'
    monkeypatch.setenv('UOTOD_CACHE', str(tmp_path / 'own'))
    assert setup_env.cache_dir() == tmp_path / 'own'
    assert setup_env.cache_dir(tmp_path / 'flag') == tmp_path / 'flag'


def test_missing_compiler_is_named_with_its_cure(no_compiler, monkeypatch):
    with pytest.raises(setup_env.SetupError, match=r'no C\+\+ compiler .*apt install g\+\+'):
        setup_env.require_compiler(include='.')
    monkeypatch.setenv('CXX', 'nonesuch -O2')
    with pytest.raises(setup_env.SetupError, match='CXX=nonesuch -O2 is not a command'):
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
    flags = ['--venv', tmp_path / 'venv', '--cache', tmp_path / 'cache', '--torch', '0.0.0']
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith('setup_env: mmcv must be compiled, but there is no C++ compiler')
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'venv').exists()


def test_full_disk_stops_the_script_before_it_makes_anything(monkeypatch, tmp_path, capsys):
    usage = collections.namedtuple('usage', 'free')(2 * setup_env.GB)
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: usage)
    monkeypatch.setattr(setup_env, 'has_cuda', lambda: False)
    monkeypatch.setattr(setup_env.signal, 'signal', lambda *_: None)
    flags = ['--venv', str(tmp_path / 'venv'), '--cache', str(tmp_path / 'cache'), '--torch', '0.0.0']
    assert setup_env.main(flags) == 1
    assert 'needs about 6 GB of disk' in capsys.readouterr().err
    assert not (tmp_path / 'venv').exists()


def test_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / 'photo.jpg').touch()
    with pytest.raises(setup_env.SetupError, match='is not a virtual environment'):
        setup_env.Setup(tmp_path, cache=tmp_path).make_venv()
    assert (tmp_path / 'photo.jpg').exists()


def test_stamp_counts_only_while_nothing_has_changed(tmp_path):
    setup = setup_env.Setup(tmp_path, cache=tmp_path)
    (tmp_path / 'bin').mkdir()
    # Stands in for the environment's Python: the one that runs the tests.
    setup.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    setup.python.chmod(0o755)
    assert not setup.is_ready()
    setup.write_stamp()
    torch = setup.env['versions']['torch']
    assert setup.is_ready()

    assert setup_env.Setup(tmp_path, torch=torch).is_ready()
    assert not setup_env.Setup(tmp_path, torch='0.0.0').is_ready()

    stamp = setup.stamp.read_text()
    setup.stamp.write_text(stamp.replace(f'"{torch}"', '"1.0"'))  # as if another torch had come since
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


def test_compile_log_yields_progress_and_the_first_error(tmp_path):
    log = tmp_path / 'build.log'
    lines = [f'  [{n}/171] c++ -c {n}.cpp' for n in range(1, 64)]
    log.write_text('\n'.join(lines))
    assert setup_env.ninja_progress(log) == '63 of 171 files'
    assert setup_env.compiler_error(log) == ''
    lines += ['  ops.cpp:3:10: fatal error: x.h: No such file', '  error: subprocess-exited-with-error']
    lines += ['  See above for output.'] + ['pip says more'] * 50
    log.write_text('\n'.join(lines))
    assert setup_env.compiler_error(log) == 'ops.cpp:3:10: fatal error: x.h: No such file'
    assert 'x.h' in setup_env.tail(log) and 'pip says more' not in setup_env.tail(log)


def test_library_that_cv2_misses_is_named_with_its_package():
    error = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
    assert 'apt install libgl1' in setup_env.library_hint(error)
    assert setup_env.library_hint('ImportError: something else') == ''


def test_wheel_contains_the_whole_package_and_nothing_else(tmp_path):
    # From a copy: building leaves folders in the source tree, and what an earlier build left would get in.
    source = tmp_path / 'source'
    shutil.copytree(ROOT / 'uotod_mmdet', source / 'uotod_mmdet', ignore=shutil.ignore_patterns('__pycache__'))
    (source / 'tests').mkdir()
    (source / 'tests' / '__init__.py').touch()
    for name in ('setup.py', 'pyproject.toml', 'LICENSE', 'README.md'):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', tmp_path]
    done = subprocess.run([*pip, '.'], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob('uotod_mmdet-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith('/METADATA'))
    modules = {str(path.relative_to(source)) for path in (source / 'uotod_mmdet').rglob('*.py')}
    assert names == modules | {'uotod_mmdet/py.typed'}

    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert sorted(line.split()[1] for line in required) == ['filelock', 'numpy', 'packaging', 'scipy']
