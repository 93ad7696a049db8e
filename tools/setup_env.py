#!/usr/bin/env python3
"""Make the environment of uotod_mmdet in one step: ``python3 tools/setup_env.py``.

Installs torch, mmengine, mmcv with compiled ops, mmdet and this package (editable) into a virtual environment. What
is there already is respected: an existing environment, a torch in it, a torch of the Python that runs this script (a
conda environment, say), and other distributions (forks) of the modules mmengine, mmcv and mmdet. ``--lineage onedl``
installs the maintained forks. mmcv comes as source only; its wheel is compiled once and cached outside the checkout. A
second run takes a fraction of a second.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Optional

if sys.version_info < (3, 10) or os.name != 'posix':
    sys.exit('setup_env: Python 3.10 or later on Linux or macOS is needed; name another Python (make: PYTHON=...).')

import fcntl  # noqa: E402  (not on Windows)

ROOT = Path(__file__).resolve().parent.parent
TORCH = '2.13.0'
# What is installed, by lineage: the distributions of OpenMMLab, or their maintained forks.
LINEAGES = {
    'openmmlab': {'mmengine': 'mmengine>=0.10.4,<0.11', 'mmcv': 'mmcv==2.1.0', 'mmdet': 'mmdet>=3.3,<3.4'},
    'onedl': {
        'mmengine': 'onedl-mmengine>=0.10.12,<0.11',
        'mmcv': 'onedl-mmcv==2.3.6',
        'mmdet': 'onedl-mmdetection>=3.5.1,<3.6',
    },
}
SETUPTOOLS = 'setuptools>=64,<81'  # mmcv's setup.py imports pkg_resources, which setuptools 81 begins to drop
GB = 1024**3

# Must not import torch, to stay fast. 'foreign' are modules that come, but not from the distribution of their name.
PROBE = """
import importlib.metadata, importlib.util, json, sys, sysconfig

modules = 'torch', 'cv2', 'mmengine', 'mmcv', 'mmdet', 'uotod_mmdet'
versions = dict.fromkeys((*modules, 'mmcv-lite', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'))
for name in versions:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
versions['mmcv'] = versions['mmcv'] or versions['mmcv-lite']
print(json.dumps({
    'python': sys.version_info[:3],
    'tag': f'cp{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}',
    'platform': sysconfig.get_platform(),
    'include': sysconfig.get_path('include'),
    'versions': versions,
    'foreign': [m for m in modules if not versions[m] and getattr(importlib.util.find_spec(m), 'origin', None)],
}))
"""


class SetupError(Exception):
    """A reason to stop, as one plain sentence; ``log`` is a file whose end tells more."""

    def __init__(self, message: str, log: Optional[Path] = None) -> None:
        super().__init__(message)
        self.log = log


def say(text: str) -> None:
    print('      ' + text, flush=True)


def cache_dir() -> Path:
    """Return where compiled wheels and the log are kept: UOTOD_CACHE, or uotod_mmdet in the user's cache folder."""
    if os.environ.get('UOTOD_CACHE'):
        return Path(os.environ['UOTOD_CACHE']).expanduser().absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache').absolute() / 'uotod_mmdet'


def require_compiler(include: Path) -> str:
    """Return the C++ compiler's command; raise SetupError if there is none or ``include`` lacks Python's headers."""
    asked = os.environ.get('CXX', '').strip()
    names = [asked] if asked else ['g++', 'c++', 'clang++']
    compiler = next((name for name in names if shutil.which(name.split()[0])), None)
    if compiler is None:
        raise SetupError(
            f'mmcv must be compiled, but there is no C++ compiler (looked for {", ".join(names)}). Install one (Debian '
            'and Ubuntu: apt install g++) or name it in the variable CXX.'
        )
    if not (Path(include) / 'Python.h').exists():
        raise SetupError(
            f"mmcv must be compiled, but Python's headers are missing in {include}. Install them (Debian and Ubuntu: "
            'apt install python3-dev) or take another Python (make: PYTHON=...).'
        )
    return compiler


def require_disk(folder: Path, gigabytes: int, purpose: str) -> None:
    """Raise SetupError if the disk that will hold ``folder`` has less than this free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / GB
    if free < gigabytes:
        raise SetupError(f'{purpose} needs about {gigabytes} GB of disk in {folder}, but only {free:.1f} GB are free.')


def has_cuda() -> bool:
    """Say whether there is a working GPU, or FORCE_CUDA=1 (mmcv's variable) asks to build for one."""
    smi = shutil.which('nvidia-smi')
    works = smi is not None and subprocess.run([smi], capture_output=True).returncode == 0
    return works or os.environ.get('FORCE_CUDA') == '1'


def matches(installed: Optional[str], asked: Optional[str]) -> bool:
    """Say whether a version is the one asked for; None asks for any, '2.13.0' for '2.13.0+cpu' too."""
    return installed is not None and (asked is None or installed == asked or installed.startswith(asked + '+'))


def torch_candidates(version: str, cuda: bool) -> list:
    """List where to find a torch: pairs of a pip requirement with its pip options, best first."""
    plain = ('torch==' + version, [])
    if '+' in version:
        # Few retries: where that index cannot be reached, the next candidate should get its turn soon.
        index = 'https://download.pytorch.org/whl/' + version.split('+')[1]
        return [plain, (plain[0], ['--retries', '1', '--timeout', '20', '--index-url', index])]
    if cuda or sys.platform == 'darwin':
        return [plain]
    return [*torch_candidates(version + '+cpu', cuda), plain]


def distribution(requirement: str) -> str:
    """Return the name in a pip requirement."""
    return re.match(r'[\w-]+', requirement)[0]


def installed_from(lineage: str, versions: dict) -> dict:
    """Return which distributions of a lineage are installed, by module."""
    names = {module: distribution(requirement) for module, requirement in LINEAGES[lineage].items()}
    return {module: name for module, name in names.items() if versions[name]}


def wheel_folder(cache: Path, tag: str, platform: str, torch: str, mmcv: str, ops: str) -> Path:
    """Return the folder of the wheel of ``mmcv==version`` that fits; ops is 'cpu' or 'cuda'.

    Compiled ops fit one torch only.
    """
    return cache / 'wheels' / f'{tag}-{platform}-torch{torch}-{mmcv.replace("==", "")}-{ops}'


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum_file(wheel: Path) -> Path:
    return wheel.with_name(wheel.name + '.sha256')


def is_whole(wheel: Path) -> bool:
    """Say whether an mmcv wheel is as it was stored, unpacks and has compiled ops."""
    try:
        promised = checksum_file(wheel).read_text().split()[0]
        with zipfile.ZipFile(wheel) as archive:
            has_ops = any(re.match(r'mmcv/_ext[^/]*\.so$', name) for name in archive.namelist())
            return has_ops and promised == checksum(wheel) and archive.testzip() is None
    except Exception:  # zipfile, zlib and struct each have their own
        return False


def cached_wheel(folder: Path) -> Optional[Path]:
    """Return the usable mmcv wheel of a cache folder or None; a corrupt one is reported and removed."""
    for wheel in sorted(folder.glob('*mmcv-*.whl')):
        if is_whole(wheel):
            return wheel
        say(f'The cached wheel {wheel} is damaged or has no compiled ops; it is removed and will be compiled anew.')
        wheel.unlink()
        checksum_file(wheel).unlink(missing_ok=True)
    return None


def store_wheel(wheel: Path, folder: Path) -> Path:
    """Move a wheel into a cache folder on the same disk, after its checksum: no wheel is there without one."""
    target = folder / wheel.name
    note = checksum_file(wheel)
    note.write_text(f'{checksum(wheel)}  {wheel.name}\n')
    os.replace(note, checksum_file(target))
    os.replace(wheel, target)
    return target


@contextlib.contextmanager
def locked(path: Path):
    """Hold a lock file; it frees itself when the process ends, however that comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('Another set-up is running; waiting for it to end.', flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def run(command: list, log: Path, env: Optional[dict] = None) -> int:
    """Run a command with its output appended to ``log`` and a sign of life every 30 s; return its exit code."""
    command = [str(part) for part in command]
    began = time.monotonic()
    with open(log, 'a') as out:
        print('\n$', shlex.join(command), file=out, flush=True)
        # Compilers are grandchildren: a session of their own lets us stop them all.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            while True:
                try:
                    return process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    files = re.findall(r'^\s*(\[\d+/\d+\]) ', log.read_text(errors='replace'), re.MULTILINE)  # ninja's
                    say(' '.join([f'{(time.monotonic() - began) / 60:.1f} min', *files[-1:]]))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def network_hint(log: Path) -> str:
    """Return a sentence if the last command in a log could not reach the network, else nothing."""
    last = log.read_text(errors='replace').rpartition('\n$ ')[2]
    if not re.search(r'connection broken by|NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout', last):
        return ''
    return (
        ' pip cannot reach its package index. Connect to the network, or name a mirror in PIP_INDEX_URL or a folder '
        'of wheels in PIP_FIND_LINKS.'
    )


def ask(python: Path, code: str) -> subprocess.CompletedProcess:
    """Run code in a Python, outside the checkout, and return what it wrote."""
    return subprocess.run([str(python), '-c', code], cwd='/', stdin=subprocess.DEVNULL, capture_output=True, text=True)


def probe(python: Path) -> Optional[dict]:
    """Return what PROBE finds in a Python, or None if that does not run."""
    try:
        return json.loads(ask(python, PROBE).stdout.splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return None


class Setup:
    """The steps, in order. ``self.env`` is what the probe last saw in the virtual environment, None before it is."""

    def __init__(self, venv: Path, torch: Optional[str], cache: Path, lineage: Optional[str] = None) -> None:
        self.venv, self.asked, self.cache = venv, torch, cache
        self.asked_lineage, self.lineage = lineage, lineage or 'openmmlab'
        self.python = venv / 'bin' / 'python'
        self.log = cache / 'setup_env.log'
        self.stamp = venv / 'uotod_mmdet_env.json'
        self.env = None
        self.pins = []  # what no install may change
        self.cuda = self.shares_torch = False

    def make(self) -> None:
        if not self.is_ready():
            with locked(self.cache / 'lock'):
                if not self.is_ready():  # the one we waited for may have made it
                    self.make_steps()
        print(f'The environment {self.venv} is ready.', flush=True)

    def make_steps(self) -> None:
        self.stamp.unlink(missing_ok=True)
        self.log.write_text('')
        steps = [self.check, self.make_venv, self.install_torch, self.install_mmengine, self.install_mmcv]
        steps += [self.install_packages, self.verify]
        for number, step in enumerate(steps, 1):
            print(f'[{number}/{len(steps)}] {step.__name__.replace("_", " ")}', flush=True)
            step()
        self.write_stamp()

    def state(self) -> dict:
        """Return what decides what a run does, and what it installed."""
        sources = sorted((ROOT / 'uotod_mmdet' / 'csrc').iterdir())
        files = [checksum(path) for path in (Path(__file__), ROOT / 'setup.py', *sources)]
        return {'root': str(ROOT), 'files': files, 'env': self.env}

    def is_ready(self) -> bool:
        """Say whether an earlier run came to its end and nothing has changed since."""
        self.env = probe(self.python)
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return False
        if self.env is None or stamp != self.state() or not matches(self.env['versions']['torch'], self.asked):
            return False
        return not self.strangers(self.env)

    def strangers(self, seen: dict) -> list:
        """Return the distributions there of a lineage that was not asked for; none where no lineage was asked for."""
        others = [lineage for lineage in LINEAGES if self.asked_lineage not in (None, lineage)]
        return [name for lineage in others for name in installed_from(lineage, seen['versions']).values()]

    def write_stamp(self) -> None:
        self.env = probe(self.python)
        self.stamp.write_text(json.dumps(self.state(), indent=1))

    def demand(self, code: str, failure: str, hint: str = '') -> str:
        """Run code in the environment's Python and return what it prints, or raise SetupError."""
        answer = ask(self.python, code)
        if answer.returncode:
            with open(self.log, 'a') as log:
                log.write(answer.stderr)
            last = (answer.stderr.strip().splitlines() or ['no message'])[-1].rstrip('.')
            raise SetupError(f'{failure}: {last}.{hint}', self.log)
        return answer.stdout

    def pip(self, *arguments, env: Optional[dict] = None) -> None:
        code = run([self.python, '-m', 'pip', *arguments], self.log, env)
        if code:
            failed = f'"pip {arguments[0]} {arguments[-1]}" failed with exit code {code}.'
            raise SetupError(failed + network_hint(self.log), self.log)

    def install(self, *requirements) -> None:
        self.pip('install', *self.pins, *requirements)

    def check(self) -> None:
        """Find out early what would fail late."""
        works = self.env is not None and self.env['python'] >= [3, 10]
        empty = not self.venv.exists() or not any(self.venv.iterdir())
        if not works and not empty:
            raise SetupError(
                f'{self.venv} is not a virtual environment with a working Python 3.10 or later. Remove it or choose '
                'another folder (--venv; make: VENV=...).'
            )
        if self.env is None and not (importlib.util.find_spec('venv') and importlib.util.find_spec('ensurepip')):
            raise SetupError(
                f'This Python ({sys.executable}) lacks the module venv or ensurepip. Install it (Debian and Ubuntu: '
                'apt install python3-venv) or take another Python (make: PYTHON=...).'
            )
        # A new environment can see the packages of the Python that makes it, unless that is a virtual one too.
        seen = self.env or probe(sys.executable)
        sees_packages = self.env is not None or (sys.prefix == sys.base_prefix and not self.strangers(seen))
        if sees_packages:
            self.check_lineage(seen)
        has_torch = sees_packages and matches(seen['versions']['torch'], self.asked)
        self.shares_torch = has_torch and self.env is None
        torch = seen['versions']['torch'] if has_torch else self.asked or TORCH
        self.cuda = has_cuda() and not torch.endswith('+cpu')
        require_disk(self.venv, 1 if has_torch else 12 if self.cuda else 6, 'The environment')
        has_mmcv = has_torch and ('mmcv' in seen['foreign'] or seen['versions']['mmcv'])
        mmcv = LINEAGES[self.lineage]['mmcv']
        wheels = wheel_folder(self.cache, seen['tag'], seen['platform'], torch + '*', mmcv, '*')  # +cpu, say
        if not has_mmcv and not any(wheels.parent.glob(wheels.name + '/*mmcv-*.whl')):
            self.require_build(seen['include'])

    def check_lineage(self, seen: dict) -> None:
        """Find out which lineage is there; raise SetupError for two, and for another than the one asked for."""
        there = {lineage: installed_from(lineage, seen['versions']) for lineage in LINEAGES}
        python = self.python if self.env else sys.executable
        for module, name in there['openmmlab'].items():
            if module in there['onedl']:
                both = f'{name} {there["onedl"][module]}'
                raise SetupError(
                    f'{both.replace(" ", " and ")} are both installed for {python}, and both bring the module '
                    f'{module}. Uninstall both (`{python} -m pip uninstall -y {both}`) and run this again.'
                )
        strangers = self.strangers(seen)
        if strangers:
            raise SetupError(
                f'{self.venv} has {", ".join(strangers)}, which the lineage {self.asked_lineage} does not go with. '
                'Choose another folder (--venv; make: VENV=...).'
            )
        if self.asked_lineage is None and there['onedl']:
            self.lineage = 'onedl'

    def require_build(self, include: Path) -> str:
        """Check what compiling mmcv needs and return the compiler's command."""
        require_disk(self.cache, 2, 'Compiling mmcv')
        home = Path(os.environ.get('CUDA_HOME') or '/usr/local/cuda')
        if self.cuda and not (shutil.which('nvcc') or (home / 'bin' / 'nvcc').exists()):
            raise SetupError(
                'mmcv must be compiled for the GPU, but there is no nvcc on the PATH nor in CUDA_HOME. Install the '
                f"CUDA toolkit of torch's version, or choose to work on the CPU (make: TORCH={TORCH}+cpu)."
            )
        return require_compiler(include)

    def make_venv(self) -> None:
        if self.env is None:
            options = ['--system-site-packages'] if self.shares_torch else []
            if run([sys.executable, '-m', 'venv', *options, self.venv], self.log):
                raise SetupError(f'The virtual environment {self.venv} could not be made.', self.log)
            self.env = probe(self.python)
        if ask(self.python, 'import pip._internal.cli.main').returncode:  # made without, or half made
            run([self.python, '-m', 'ensurepip'], self.log)

    def install_torch(self) -> None:
        if matches(self.env['versions']['torch'], self.asked):
            say(f'{self.env["versions"]["torch"]} is there')
        else:
            self.pip('uninstall', '-y', 'mmcv', 'onedl-mmcv')  # their ops fit the old torch only
            version = self.asked or TORCH
            for requirement, options in torch_candidates(version, self.cuda):
                say(' from '.join([requirement, *options[-1:]]))
                if run([self.python, '-m', 'pip', 'install', *options, requirement], self.log) == 0:
                    break
            else:
                advice = network_hint(self.log) or (
                    f' Choose another version (--torch; make: TORCH=...) or install one into {self.venv} yourself.'
                )
                raise SetupError(f'torch {version} could not be installed.{advice}', self.log)
            self.env = probe(self.python)
        torch = self.env['versions']['torch']
        self.pins = ['torch==' + torch, SETUPTOOLS]
        if [int(n) for n in re.findall(r'\d+', torch)[:2]] < [2, 3]:
            self.pins.append('numpy<2')  # torch before 2.3 was built against numpy 1

    def install_mmengine(self) -> None:
        needed = {'mmengine': LINEAGES[self.lineage]['mmengine'], 'cv2': 'opencv-python'}
        packages = [package for module, package in needed.items() if module not in self.env['foreign']]
        self.install('wheel', 'ninja', *packages)
        hint = ' If a system library is missing: apt install libgl1 libglib2.0-0 (Debian and Ubuntu).'
        self.demand('import cv2', 'OpenCV does not import', hint)

    def install_mmcv(self) -> None:
        mmcv = LINEAGES[self.lineage]['mmcv']
        versions = self.env['versions']
        if 'mmcv' in self.env['foreign'] and not versions['onedl-mmcv']:
            say('another distribution is there')
            return
        version = versions[distribution(mmcv)] or ''
        fits = self.lineage == 'onedl' or version.startswith(('2.0.', '2.1.'))
        if version and fits and ask(self.python, 'import mmcv.ops').returncode == 0:
            say(f'{version} is there')
            return
        what = 'import torch; print(torch.__version__, torch.version.cuda)'
        torch, cuda = self.demand(what, 'torch does not import').split()
        ops = 'cuda' if self.cuda and cuda != 'None' else 'cpu'
        folder = wheel_folder(self.cache, self.env['tag'], self.env['platform'], torch, mmcv, ops)
        wheel = cached_wheel(folder) or self.compile_mmcv(mmcv, folder, ops)
        self.pip('uninstall', '-y', 'mmcv-lite')
        # Without its dependencies: a fork may stand for the mmengine among them.
        self.pip('install', '--no-deps', '--force-reinstall', wheel)
        hint = f' If nothing else explains it, remove {wheel} and run this again.'
        self.demand('import mmcv.ops', 'The compiled ops of mmcv do not import', hint)

    def compile_mmcv(self, mmcv: str, folder: Path, ops: str) -> Path:
        """Compile ``mmcv==version`` and return its wheel in the cache folder."""
        compiler = self.require_build(self.env['include'])
        build = folder / 'build'
        shutil.rmtree(build, ignore_errors=True)  # of a run that was killed
        build.mkdir(parents=True)
        env = {
            'MAX_JOBS': str(os.cpu_count()),
            **os.environ,
            'MMCV_WITH_OPS': '1',
            'FORCE_CUDA': str(int(ops == 'cuda')),
            'CXX': compiler,
            **self.newer_standard(compiler, build),
            'TMPDIR': str(build),  # /tmp may be small
            'PATH': f'{self.python.parent}:{os.environ.get("PATH", "")}',  # ninja
        }
        say(f'compiling with {compiler}, {env["MAX_JOBS"]} at once: about 15 minutes on 2 cores; log: {self.log}')
        try:
            # pip's own cache does not know for which torch a wheel was compiled.
            options = ['-v', '--no-build-isolation', '--no-deps', '--no-cache-dir', '-w', build]
            self.pip('wheel', *options, '--no-binary', distribution(mmcv), mmcv, env=env)
            return store_wheel(next(build.glob('*mmcv-*.whl')), folder)
        finally:
            shutil.rmtree(build, ignore_errors=True)

    def newer_standard(self, compiler: str, build: Path) -> dict:
        """Return the environment that makes mmcv's setup.py, which asks for C++17, compile for a torch that needs more.

        The last ``-std`` on a command line wins, and setup.py's own comes after all that its variables can add.
        """
        header = (
            'import pathlib, torch; print((pathlib.Path(torch.__file__).parent / "include/ATen/ATen.h").read_text())'
        )
        needed = re.search(r'#error C\+\+(\d+) or later', ask(self.python, header).stdout)
        if needed is None or needed[1] == '17':
            return {}
        flag = f'-std=c++{needed[1]}'
        wrapper = build / 'c++'
        wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {flag}\n')
        wrapper.chmod(0o755)
        return {'CXX': str(wrapper), 'NVCC_APPEND_FLAGS': f'{os.environ.get("NVCC_APPEND_FLAGS", "")} {flag}'.strip()}

    def install_packages(self) -> None:
        if 'mmdet' not in self.env['foreign']:
            self.install(LINEAGES[self.lineage]['mmdet'])
        self.install('--no-build-isolation', '-e', f'{ROOT}[tests,lint,plots,docs]')

    def verify(self) -> None:
        code = (
            'import torch, cv2, mmengine, mmcv.ops, mmdet.models; '
            'from uotod_mmdet.ops import native; print(native.library)'
        )
        if self.demand(code, 'The environment does not work').strip().endswith('None'):
            say(f'no compiled part of uotod_mmdet: all works, more slowly on a CPU; {self.log} may say why')


def main(arguments: Optional[list] = None) -> Optional[str]:
    """Make the environment; return None or, as ``sys.exit`` takes it, the sentence that says why that failed."""
    parser = argparse.ArgumentParser(description='Make the environment of uotod_mmdet in one step.')
    parser.add_argument('--venv', default=str(ROOT / '.venv'), help='folder of the environment (default: %(default)s)')
    parser.add_argument(
        '--torch',
        default=os.environ.get('TORCH') or None,
        help=f'torch version, say 2.13.0 or 2.13.0+cpu (default: TORCH, else the installed one, else {TORCH})',
    )
    parser.add_argument(
        '--lineage',
        choices=list(LINEAGES),
        help="OpenMMLab's mmengine, mmcv and mmdet or their maintained forks (default: what is installed, else the "
        'first)',
    )
    options = parser.parse_args(arguments)
    try:
        Setup(Path(options.venv).expanduser().absolute(), options.torch, cache_dir(), options.lineage).make()
    except KeyboardInterrupt:
        return 'setup_env: stopped'
    except (SetupError, OSError) as error:
        log = getattr(error, 'log', None)
        if log:
            # For a failed compile, show what comes before the tracebacks of ninja's callers.
            lines = log.read_text(errors='replace').partition('ninja: build stopped')[0].splitlines()
            print('\n'.join([f'--- the end of {log}:', *lines[-30:], '---']), file=sys.stderr)
        return f'setup_env: {error}'
    return None


if __name__ == '__main__':
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C, so that what we started is stopped too
    sys.exit(main())
