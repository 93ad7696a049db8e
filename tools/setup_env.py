#!/usr/bin/env python3
"""Make the environment of uotod_mmdet in one step: ``python3 tools/setup_env.py``.

Installs torch, mmengine, mmcv with compiled ops, mmdet and this package (editable) into a virtual environment. What
is there already is respected: an existing environment, a torch in it, a torch of the Python that runs this script (a
conda environment, say), and other distributions of the modules mmengine, mmcv and mmdet. mmcv comes as source only;
its wheel is compiled once and cached outside the checkout. A second run takes a fraction of a second.

Needs the standard library only. The syntax is kept old enough for an outdated Python to reach the sentence that says
so.
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
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 9)
TORCH = '2.13.0'
MMENGINE = 'mmengine>=0.10.4,<0.11'
MMCV = '2.1.0'
MMCV_RANGE = ((2, 0), (2, 2))
MMDET = 'mmdet>=3.3,<3.4'
SETUPTOOLS = 'setuptools>=64,<81'  # mmcv's setup.py imports pkg_resources, which setuptools 81 begins to drop
GB = 1024**3
STAMP = 'uotod_mmdet_env.json'
TAIL_LINES = 30

# What apt package holds a library that cv2 may miss on a bare Debian or Ubuntu.
APT_PACKAGES = {
    'libGL.so.1': 'libgl1',
    'libgthread-2.0.so.0': 'libglib2.0-0',
    'libglib-2.0.so.0': 'libglib2.0-0',
    'libSM.so.6': 'libsm6',
    'libICE.so.6': 'libice6',
    'libXext.so.6': 'libxext6',
    'libXrender.so.1': 'libxrender1',
    'libX11.so.6': 'libx11-6',
    'libxcb.so.1': 'libxcb1',
}

# Runs in the environment's Python; must not import torch, to stay fast. 'foreign' are modules that some other
# distribution (a fork, a checkout on sys.path) brings.
PROBE = """
import importlib.metadata, importlib.util, json, platform, sys, sysconfig

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

def found(module):
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None

names = 'torch', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'uotod_mmdet'
versions = {name: version(name) for name in names}
modules = 'torch', 'mmengine', 'mmcv', 'mmdet', 'uotod_mmdet'
print(json.dumps({
    'python': platform.python_version(),
    'tag': f'cp{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}',
    'platform': sysconfig.get_platform(),
    'site': sysconfig.get_path('purelib'),
    'include': sysconfig.get_path('include'),
    'versions': versions,
    'missing': [m for m in modules if not found(m)],
    'foreign': [m for m in modules if found(m) and versions[m] is None],
}))
"""


class SetupError(Exception):
    """A reason to stop, as one plain sentence; ``log`` is a file whose end tells more."""

    def __init__(self, message, log=None):
        super().__init__(message)
        self.log = log


class Progress:
    """One line a step with its seconds; a heartbeat every 30 s, in place on a terminal."""

    def __init__(self, steps):
        self.steps, self.number = steps, 0
        self.head, self.began, self.last_beat = 'setup', time.monotonic(), 0.0
        self.line_open = False
        self.in_place = sys.stdout.isatty()

    def step(self, text):
        self.number += 1
        self.head = f'[{self.number}/{self.steps}] {text}'
        self.began = self.last_beat = time.monotonic()
        self._write(self.head)

    def beat(self, text=''):
        """Call this about once a second; it decides what to show."""
        now = time.monotonic()
        if not self.in_place and now - self.last_beat < 30:
            return
        self.last_beat = now
        minutes = f'{(now - self.began) / 60:.1f} min'
        beat = ', '.join(part for part in (minutes, text) if part)
        if self.in_place:
            width = shutil.get_terminal_size().columns - 1
            self._write('\r' + (self.head + ' ... ' + beat)[:width] + '\033[K')
        else:
            self.note(beat)

    def note(self, text):
        self.close_line()
        print('      ' + text, flush=True)

    def done(self):
        seconds = f'({time.monotonic() - self.began:.0f} s)'
        if self.line_open and self.in_place:
            self._write('\r' + self.head + ' ' + seconds + '\033[K')
        elif self.line_open:
            self._write(' ' + seconds)
        else:
            self._write('      done ' + seconds)
        self.close_line()

    def close_line(self):
        if self.line_open:
            print(flush=True)
        self.line_open = False

    def _write(self, text):
        print(text, end='', flush=True)
        self.line_open = True


def shown(path):
    """Write a path as a user would: relative where it lies below the current folder."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def cache_dir(chosen=None):
    """Say where compiled wheels are kept: ``chosen``, else UOTOD_CACHE, else uotod_mmdet in the user's cache folder."""
    if chosen or os.environ.get('UOTOD_CACHE'):
        return Path(chosen or os.environ['UOTOD_CACHE']).expanduser().absolute()
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base).absolute() / 'uotod_mmdet'


def find_compiler():
    """Return the command of the C++ compiler (CXX if that is set), or None."""
    asked = os.environ.get('CXX', '').strip()
    if asked:
        return asked if shutil.which(shlex.split(asked)[0]) else None
    return next((name for name in ('g++', 'c++', 'clang++') if shutil.which(name)), None)


def require_compiler(include):
    """Return the C++ compiler's command; raise SetupError if there is none or Python's headers are not in include."""
    compiler = find_compiler()
    if compiler is None:
        asked = os.environ.get('CXX', '').strip()
        looked = f'CXX={asked} is not a command' if asked else 'no g++, c++ or clang++ on the PATH'
        raise SetupError(
            f'mmcv must be compiled, but there is no C++ compiler ({looked}). Install one '
            '(Debian and Ubuntu: apt install g++) or name it in the environment variable CXX.'
        )
    if not (Path(include) / 'Python.h').exists():
        raise SetupError(
            f"mmcv must be compiled, but Python's headers are missing in {include}. Install them (Debian and Ubuntu: "
            'apt install python3-dev) or take another Python (make: PYTHON=...).'
        )
    return compiler


def require_nvcc():
    """Raise SetupError if the CUDA compiler is missing."""
    homes = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH'), '/usr/local/cuda']
    if shutil.which('nvcc') or any(home and (Path(home) / 'bin' / 'nvcc').exists() for home in homes):
        return
    raise SetupError(
        'There is a GPU, so mmcv must be compiled for CUDA, but there is no nvcc on the PATH nor in CUDA_HOME. Install '
        f"torch's version of the CUDA toolkit, or choose to work on the CPU: --torch {TORCH}+cpu (make: "
        f'TORCH={TORCH}+cpu).'
    )


def require_disk(folder, gigabytes, purpose):
    """Raise SetupError if the disk that will hold ``folder`` has less than this free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(str(existing)).free / GB
    if free < gigabytes:
        raise SetupError(
            f'{purpose} needs about {gigabytes} GB of disk in {folder}, but only {free:.1f} GB are free there.'
        )


def has_cuda():
    """Say whether there is a GPU that works: nvidia-smi is there and runs."""
    if shutil.which('nvidia-smi') is None:
        return False
    try:
        return subprocess.run(['nvidia-smi'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def compile_jobs():
    """Return how many files to compile at once: MAX_JOBS, or one a core and no more than memory holds."""
    if os.environ.get('MAX_JOBS', '').isdigit():
        return max(1, int(os.environ['MAX_JOBS']))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (ValueError, OSError):
        return cores
    return max(1, min(cores, int(memory / (1.5 * GB))))  # one file takes about 1 GB


def dotted(version):
    return '.'.join(map(str, version))


def matches(installed, asked):
    """Say whether a version is the one asked for; '2.13.0' asks for '2.13.0+cpu' too."""
    return installed == asked or installed.startswith(asked + '+')


def torch_candidates(version, cuda):
    """List where to find a torch: pairs of a pip requirement with its pip options, best first."""
    index = 'https://download.pytorch.org/whl/'
    # Few retries: where that index cannot be reached, the next candidate should get its turn soon.
    from_index = ['--retries', '1', '--timeout', '20', '--index-url']
    if '+' in version:
        return [('torch==' + version, []), ('torch==' + version, [*from_index, index + version.split('+')[1]])]
    plain = ('torch==' + version, [])
    if cuda or sys.platform == 'darwin':
        return [plain]
    small = 'torch==' + version + '+cpu'
    return [(small, []), (small, [*from_index, index + 'cpu']), plain]


def wheel_problem(wheel):
    """Say what is wrong with an mmcv wheel, or return None."""
    try:
        with zipfile.ZipFile(str(wheel)) as archive:
            if archive.testzip() is not None:
                return 'is damaged'
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return 'is damaged'
    if not any(re.match(r'mmcv/_ext[^/]*\.(so|pyd)$', name) for name in names):
        return 'has no compiled ops'
    return None


def checksum(path):
    digest = hashlib.sha256()
    with open(str(path), 'rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def checksum_file(wheel):
    return wheel.with_name(wheel.name + '.sha256')


def wheel_folder(cache, tag, platform, torch, ops):
    """Return the folder of the mmcv wheel that fits; ops is 'cpu' or 'cuda'. Compiled ops fit one torch only."""
    return cache / 'wheels' / f'{tag}-{platform}-torch{torch}-mmcv{MMCV}-{ops}'


def cached_wheel(folder, report=print):
    """Return the usable mmcv wheel of a cache folder or None; a corrupt one is reported and removed."""
    for wheel in sorted(folder.glob('mmcv-*.whl')):
        try:
            promised = checksum_file(wheel).read_text().split()[0]
        except (OSError, IndexError, UnicodeDecodeError):
            promised = None
        problem = None if promised == checksum(wheel) else 'does not match its sha256 file'
        problem = wheel_problem(wheel) or problem
        if problem is None:
            return wheel
        report(f'The cached wheel {wheel} {problem}; it is removed and will be compiled anew.')
        wheel.unlink()
        if checksum_file(wheel).exists():
            checksum_file(wheel).unlink()
    return None


def store_wheel(wheel, folder):
    """Move a wheel into a cache folder on the same disk. The checksum goes first: at no moment is there one without."""
    target = folder / wheel.name
    note = checksum_file(wheel)
    note.write_text(f'{checksum(wheel)}  {wheel.name}\n')
    os.replace(str(note), str(checksum_file(target)))
    os.replace(str(wheel), str(target))
    return target


def tail(log, lines=TAIL_LINES):
    """Return the end of a log; of a verbose pip log the end of what came before pip's own words on the failure."""
    try:
        text = Path(log).read_text(errors='replace')
    except OSError:
        return ''
    before, _, after = text.partition('error: subprocess-exited-with-error')
    return '\n'.join((before if 'See above for output' in after else text).splitlines()[-lines:])


def compiler_error(log):
    """Return the first complaint of the compiler in a compile log, or ''."""
    found = re.search(r'^.*\berror: (?!subprocess-exited).*$', Path(log).read_text(errors='replace'), re.MULTILINE)
    return found[0].strip()[:300] if found else ''


def ninja_progress(log):
    """Read from a compile log how far ninja is: '12 of 160 files', or ''."""
    with open(str(log), 'rb') as stream:
        stream.seek(max(0, os.path.getsize(str(log)) - (1 << 17)))
        found = re.findall(rb'^\s*\[(\d+)/(\d+)\] ', stream.read(), re.MULTILINE)
    if not found:
        return ''
    done, total = (int(number) for number in found[-1])
    return f'{done} of {total} files'


def library_hint(message):
    """Say how to mend a library that cv2 misses, or return ''."""
    missing = re.search(r'(lib[\w.+-]+\.so[.\d]*): cannot open shared object', message)
    if not missing:
        return ''
    package = APT_PACKAGES.get(missing[1])
    if package is None:
        return f' The system library {missing[1]} is missing; install the package that holds it.'
    return f' The system library {missing[1]} is missing (Debian and Ubuntu: apt install {package}).'


@contextlib.contextmanager
def locked(path, waiting, beat):
    """Hold a lock file; it frees itself when the process ends, however that comes."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(str(path), 'w') as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                beat(waiting)
                time.sleep(1)
                continue
            except OSError:
                pass  # a file system without locks: moves are atomic, so two at once only waste time
            break
        yield


def run(command, log, beat, env=None):
    """Run a command with its output appended to ``log`` and return its exit code; stop it if we are stopped."""
    with open(str(log), 'a') as out:
        out.write('\n$ ' + ' '.join(shlex.quote(str(part)) for part in command) + '\n')
        out.flush()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # compilers are grandchildren: a group of their own lets us stop them all
        )
        try:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    beat()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


class Setup:
    """The steps, in order. ``self.env`` is what the probe last saw in the virtual environment."""

    def __init__(self, venv, torch=None, cache=None):
        self.venv, self.asked, self.cache = venv, torch, cache or cache_dir()
        self.python = venv / 'bin' / 'python'
        self.log = venv / 'setup_env.log'
        self.constraints = venv / 'constraints.txt'
        self.built_for = venv / 'mmcv_built_for.txt'
        self.stamp = venv / STAMP
        self.cuda = False
        self.progress = Progress(steps=8)
        self.env = None
        self.torch_replaced = False

    # The stamp

    def state(self):
        """Return what a stamp says: a hash of what decides what a run does, and what it installed."""
        parts = (Path(__file__).read_bytes(), (ROOT / 'setup.py').read_bytes(), str(ROOT).encode())
        key = hashlib.sha256(b''.join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        return {'key': key, 'python': self.env['python'], 'versions': self.env['versions']}

    def is_ready(self):
        """Say whether an earlier run came to its end and nothing has changed since."""
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return False
        self.probe()
        return (
            self.env is not None
            and stamp == self.state()
            and not self.env['missing']
            and (self.asked is None or matches(self.env['versions']['torch'] or '', self.asked))
        )

    def write_stamp(self):
        self.probe()
        new = self.stamp.with_suffix('.new')
        new.write_text(json.dumps(self.state(), indent=1))
        os.replace(str(new), str(self.stamp))

    # Helpers

    def ask(self, code):
        """Run code in the environment's Python, outside the checkout; return (exit code, stdout, stderr)."""
        try:
            answer = subprocess.run(
                [str(self.python), '-c', code],
                cwd=str(self.venv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            return 1, '', str(error)
        return answer.returncode, answer.stdout, answer.stderr

    def demand(self, code, failure, hint=''):
        """Run code as ``ask`` does and return what it prints; if it fails, log its traceback and raise SetupError."""
        status, out, error = self.ask(code)
        if status:
            with open(str(self.log), 'a') as log:
                log.write(error)
            last = (error.strip().splitlines() or ['no message'])[-1].rstrip('.')
            raise SetupError(f'{failure}: {last}.{library_hint(error)}{hint}', self.log)
        return out

    def probe(self):
        code, out, _ = self.ask(PROBE)
        self.env = json.loads(out.splitlines()[-1]) if code == 0 else None

    def pip(self, *arguments, what, must=True, log=None, env=None, beat=None):
        """Run the environment's pip; return whether it succeeded."""
        log = log or self.log
        env = dict(env or os.environ, PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')
        code = run([self.python, '-m', 'pip', *arguments], log, beat or self.progress.beat, env)
        if code and must:
            raise SetupError(f'{what} failed: pip ended with exit code {code}.', log)
        return code == 0

    def install(self, *requirements, what):
        constraints = ['-c', self.constraints] if self.constraints.exists() else []
        self.pip('install', '--progress-bar', 'off', *constraints, *requirements, what=what)

    # The steps

    def make(self):
        if self.is_ready():
            print(f'The environment {shown(self.venv)} is up to date.')
            return
        self.cuda = has_cuda()
        began = time.monotonic()
        lock = self.cache / 'locks' / (hashlib.sha256(str(self.venv).encode()).hexdigest()[:16] + '.lock')
        with locked(lock, 'waiting for another setup of the same environment', self.progress.beat):
            self.progress.close_line()
            if self.is_ready():  # the other one did it
                print(f'The environment {shown(self.venv)} is up to date.')
                return
            if self.stamp.exists():
                self.stamp.unlink()
            for step in (
                self.check,
                self.make_venv,
                self.install_torch,
                self.install_build_tools,
                self.install_mmengine,
                self.install_mmcv,
                self.install_packages,
                self.verify,
            ):
                step()
                self.progress.done()
            self.write_stamp()
        venv = shown(self.venv)
        print(f'The environment {venv} is ready ({time.monotonic() - began:.0f} s). Activate it: . {venv}/bin/activate')

    def check(self):
        """Find out early what would fail late."""
        self.progress.step('check compiler and disk')
        self.probe()
        if self.env is None:
            missing = [name for name in ('venv', 'ensurepip') if importlib.util.find_spec(name) is None]
            if missing:
                raise SetupError(
                    f'This Python ({sys.executable}) lacks the module {missing[0]}. Install it (Debian and Ubuntu: '
                    'apt install python3-venv) or take another Python (make: PYTHON=...).'
                )
        elif tuple(int(n) for n in self.env['python'].split('.')[:2]) < OLDEST_PYTHON:
            raise SetupError(
                f'{shown(self.venv)} holds Python {self.env["python"]}; {dotted(OLDEST_PYTHON)} or later is needed. '
                'Remove it or choose another folder (--venv; make: VENV=...).'
            )
        has_torch = self.env is not None and self.env['versions']['torch'] or self.shared_torch()
        gpu_torch = self.cuda and '+cpu' not in (self.asked or TORCH)
        require_disk(self.venv, 1 if has_torch else 12 if gpu_torch else 6, 'The environment')
        if self.has_mmcv() or self.may_have_wheel():
            return
        require_disk(self.cache, 2, 'Compiling mmcv')
        require_compiler(self.env['include'] if self.env else sysconfig.get_path('include'))
        if gpu_torch and not (has_torch or '').endswith('+cpu'):
            require_nvcc()

    def shared_torch(self):
        """Return the version of this very Python's torch where a new environment should use it, else None."""
        if self.env is not None:
            return None
        spec = importlib.util.find_spec('torch')
        if spec is None or spec.origin is None:
            return None
        from importlib.metadata import PackageNotFoundError, version  # Python 3.7 lacks it and should get its sentence

        try:
            found = version('torch')
        except PackageNotFoundError:
            return None
        return found if self.asked is None or matches(found, self.asked) else None

    def has_mmcv(self):
        """Guess whether mmcv is there already; install_mmcv looks closely."""
        if self.env is not None:
            return 'mmcv' not in self.env['missing']
        return self.shared_torch() is not None and importlib.util.find_spec('mmcv') is not None

    def may_have_wheel(self):
        """Guess whether the cache has a fitting wheel; torch's exact version is not known yet."""
        tag = self.env['tag'] if self.env else f'cp{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}'
        torch = self.asked or (self.env and self.env['versions']['torch']) or self.shared_torch() or TORCH
        folder = wheel_folder(self.cache, tag, sysconfig.get_platform(), torch + '*', '*')
        return any(folder.parent.glob(folder.name + '/mmcv-*.whl'))

    def make_venv(self):
        if self.env is not None:
            self.progress.step(f'virtual environment {shown(self.venv)} (exists)')
            if self.ask('import pip')[0]:
                run([self.python, '-m', 'ensurepip'], self.log, self.progress.beat)
            return
        self.progress.step(f'virtual environment {shown(self.venv)}')
        is_venv = (self.venv / 'pyvenv.cfg').exists()
        if self.venv.exists() and not is_venv and any(self.venv.iterdir()):
            raise SetupError(
                f'{shown(self.venv)} exists and is not a virtual environment. Remove it or choose another folder '
                '(--venv; make: VENV=...).'
            )
        if is_venv:
            self.progress.note('its Python does not run: it is made anew')
        torch = self.shared_torch()
        if torch:
            self.progress.note(f'uses torch {torch} of {sys.executable}')
        log = self.cache / 'venv.log'
        options = ['--clear'] + (['--system-site-packages'] if torch else [])
        if run([sys.executable, '-m', 'venv', *options, self.venv], log, self.progress.beat):
            raise SetupError('The virtual environment could not be made.', log)
        self.probe()
        if self.env is None:
            raise SetupError(f'The new virtual environment {shown(self.venv)} does not run.', log)
        if torch and 'torch' in self.env['missing']:
            # This Python is a virtual environment itself, and those don't nest: add its packages behind ours.
            folders = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
            lines = [f'import site; site.addsitedir({folder!r})' for folder in folders]
            (Path(self.env['site']) / 'parent_environment.pth').write_text('\n'.join(lines) + '\n')
            self.probe()

    def install_torch(self):
        present = self.env['versions']['torch']
        if 'torch' not in self.env['missing'] and (self.asked is None or matches(present or '', self.asked)):
            self.progress.step('torch {} (exists)'.format(present or 'of unknown version'))
        else:
            version = self.asked or TORCH
            self.progress.step(f'torch {version}')
            self.torch_replaced = True
            if self.constraints.exists():
                self.constraints.unlink()
            candidates = torch_candidates(version, self.cuda)
            for requirement, options in candidates:
                if len(candidates) > 2 and '+' not in requirement:
                    self.progress.note('no build for the CPU alone was found; the full one may be a large download')
                if self.pip('install', '--progress-bar', 'off', *options, requirement, what='torch', must=False):
                    break
            else:
                raise SetupError(
                    f'torch {version} could not be installed for Python {self.env["python"]}. Choose another version '
                    f'(--torch; make: TORCH=...) or install one into {shown(self.venv)} yourself.',
                    self.log,
                )
            self.probe()
        # Nothing that comes later may change torch, nor bring a setuptools that cannot build mmcv.
        lines = [SETUPTOOLS]
        torch = self.env['versions']['torch']
        if torch:
            lines.append('torch==' + torch)
            if tuple(int(n) for n in re.findall(r'\d+', torch)[:2]) < (2, 3):
                lines.append('numpy<2')  # torch before 2.3 was built against numpy 1
        self.constraints.write_text('\n'.join(lines) + '\n')

    def install_build_tools(self):
        self.progress.step('build tools')
        self.install(SETUPTOOLS, 'wheel', 'ninja', 'numpy', what='Installing the build tools')

    def install_mmengine(self):
        foreign = 'mmengine' in self.env['foreign']
        self.progress.step('mmengine' + (' (exists, from another distribution)' if foreign else ''))
        # The mmcv wheel is installed without its dependencies (its mmengine might cover a fork), so they come here.
        others = ['addict', 'opencv-python>=3', 'packaging', 'pillow', 'pyyaml', 'yapf']
        if self.ask('import cv2')[0] == 0:
            others.remove('opencv-python>=3')  # opencv-python-headless, say
        self.install(*([] if foreign else [MMENGINE]), *others, what='Installing mmengine')
        self.demand('import cv2', 'OpenCV does not import')

    def install_mmcv(self):
        versions = self.env['versions']
        if 'mmcv' in self.env['foreign'] and not versions['mmcv-lite']:
            self.progress.step('mmcv (exists, from another distribution)')
            return
        what = 'import torch; print(torch.__version__, torch.version.cuda is not None)'
        torch, torch_cuda = self.demand(what, 'torch does not import').split()
        force = os.environ.get('FORCE_CUDA') or str(int(self.cuda and torch_cuda == 'True'))
        folder = wheel_folder(
            self.cache, self.env['tag'], self.env['platform'], torch, 'cuda' if force == '1' else 'cpu'
        )
        if self.keeps_mmcv(folder):
            self.progress.step('mmcv {} (exists)'.format(versions['mmcv']))
            return
        self.progress.step(f'mmcv {MMCV} with compiled ops')
        with locked(folder / '.lock', 'waiting for another setup that compiles mmcv', self.progress.beat):
            wheel = cached_wheel(folder, self.progress.note)
            if wheel is None:
                wheel = self.compile_mmcv(folder, force)
            if versions['mmcv-lite']:
                self.pip('uninstall', '-y', 'mmcv-lite', what='Removing mmcv-lite')
            self.install('--no-deps', '--force-reinstall', wheel, what='Installing mmcv')
        hint = f' If nothing else explains it, remove {wheel} and run this again.'
        self.demand('import mmcv.ops', 'The compiled ops of mmcv do not import', hint)
        self.built_for.write_text(folder.name + '\n')

    def keeps_mmcv(self, folder):
        """Say whether the environment's mmcv can stay: right version, its ops import, built for this torch."""
        version = self.env['versions']['mmcv']
        if version is None or self.torch_replaced:
            return False
        lowest, above = MMCV_RANGE
        if not lowest <= tuple(int(n) for n in re.findall(r'\d+', version)[:2]) < above:
            return False
        if self.built_for.exists() and self.built_for.read_text().strip() != folder.name:
            return False
        return self.ask('import mmcv.ops')[0] == 0

    def compile_mmcv(self, folder, force_cuda):
        """Compile mmcv and return its wheel in the cache folder."""
        compiler = require_compiler(self.env['include'])
        if force_cuda == '1':
            require_nvcc()
        require_disk(folder, 2, 'Compiling mmcv')
        for left in folder.glob('build-*'):  # of a run that was killed
            shutil.rmtree(str(left), ignore_errors=True)
        jobs = compile_jobs()
        log = folder / 'build.log'
        if log.exists():
            log.unlink()
        log.touch()
        self.progress.note(
            f'compiling with {compiler}, {jobs} at once, about {max(1, 20 // jobs)} minutes; log: {shown(log)}'
        )
        build = tempfile.mkdtemp(prefix='build-', dir=str(folder))
        try:
            env = dict(
                os.environ,
                MMCV_WITH_OPS='1',
                FORCE_CUDA=force_cuda,
                MAX_JOBS=str(jobs),
                CXX=compiler,
                TMPDIR=build,  # /tmp may be small
                PATH=os.pathsep.join([str(self.python.parent), os.environ.get('PATH', '')]),  # ninja
            )
            # pip's own wheel cache does not know for which torch a wheel was compiled, hence --no-cache-dir.
            made = self.pip(
                *('wheel', '-v', '--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary', 'mmcv'),
                *('-w', build, 'mmcv==' + MMCV),
                what='Compiling mmcv',
                must=False,
                log=log,
                env=env,
                beat=lambda: self.progress.beat(ninja_progress(log)),
            )
            if not made:
                error = compiler_error(log)
                raise SetupError(f'mmcv {MMCV} could not be compiled{": " if error else "."}{error}', log)
            wheels = list(Path(build).glob('mmcv-*.whl'))
            problem = wheel_problem(wheels[0]) if wheels else 'is missing'
            if problem:
                raise SetupError(f'The wheel that pip made of mmcv {MMCV} {problem}.', log)
            return store_wheel(wheels[0], folder)
        finally:
            shutil.rmtree(build, ignore_errors=True)

    def install_packages(self):
        foreign = 'mmdet' in self.env['foreign']
        self.progress.step('mmdet{} and uotod_mmdet'.format(' (exists, from another distribution)' if foreign else ''))
        if not foreign:
            self.install(MMDET, what='Installing mmdet')
        self.install('--no-build-isolation', '-e', str(ROOT) + '[tests,plots]', what='Installing uotod_mmdet')

    def verify(self):
        self.progress.step('verify')
        out = self.demand(
            'import torch, cv2, mmengine, mmcv, mmcv.ops, mmdet, uotod_mmdet\n'
            'for m in (torch, cv2, mmengine, mmcv, mmdet, uotod_mmdet): print(m.__name__, m.__version__)',
            'The environment does not work',
        )
        self.progress.note(', '.join(out.splitlines()[-6:]))


def stop(number, _):
    """Turn a signal into an exception, so that what we started is stopped and temporary files go."""
    raise SetupError(f'stopped by signal {signal.Signals(number).name}')


def main(arguments=None):
    parser = argparse.ArgumentParser(description='Make the environment of uotod_mmdet in one step.')
    parser.add_argument('--venv', default=str(ROOT / '.venv'), help='folder of the environment (default: %(default)s)')
    parser.add_argument(
        '--torch',
        default=os.environ.get('TORCH') or None,
        help=f'torch version, say 2.13.0 or 2.13.0+cpu (default: TORCH, else the installed one, else {TORCH})',
    )
    parser.add_argument(
        '--cache', help='folder of compiled wheels (default: UOTOD_CACHE, else uotod_mmdet in the cache folder)'
    )
    options = parser.parse_args(arguments)
    setup = None
    try:
        if os.name != 'posix':
            raise SetupError('This script works on Linux and macOS; on Windows run it in WSL.')
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(
                f'Python {dotted(OLDEST_PYTHON)} or later is needed, this is {dotted(sys.version_info[:2])}; '
                'name another one (make: PYTHON=...).'
            )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        setup = Setup(Path(options.venv).expanduser().absolute(), options.torch, cache_dir(options.cache))
        setup.make()
    except (SetupError, OSError) as error:
        if setup is not None:
            setup.progress.close_line()
        sys.stdout.flush()
        log = getattr(error, 'log', None)
        if log:
            print(f'--- the last {TAIL_LINES} lines of {log}:\n{tail(log)}\n---', file=sys.stderr)
        print(f'setup_env: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
