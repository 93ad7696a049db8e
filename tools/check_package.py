"""Install built packages as their users do and train with each: ``python tools/check_package.py dist/*``.

Makes an environment in build/check_package with mmdet, mmcv and the torch version of the Python that runs this, but
without this package. Each file is installed there in turn, an sdist where no compiler is found. It must

- change no package that was there,
- bring the compiled part, which then is loaded; a wheel for any system and the sdist must go without,
- train an epoch of check_package_config.py from another folder, through mmengine's Runner.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Optional

import setup_env

FOLDER = setup_env.ROOT / 'build' / 'check_package'
ENV = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'UOTOD'))}
MMDET = 'mmdet>=3.3,<3.4'
CONFIG = Path(__file__).with_name('check_package_config.py')

# Does not import uotod_mmdet before the end: its prefix in a config is enough.
TRAIN = f"""
import json
from mmengine.config import Config
from mmengine.runner import Runner

runner = Runner.from_cfg(Config.fromfile({str(CONFIG)!r}))
runner.train()
losses = [float(loss) for loss in runner.message_hub.get_scalar('train/loss').data[0]]

import uotod_mmdet
from uotod_mmdet.ops import native

print(json.dumps(dict(
    file=uotod_mmdet.__file__,
    compiled=native.library is not None,
    losses=[sum(part) / 5 for part in (losses[:5], losses[-5:])],
    AP=float(runner.message_hub.get_scalar('val/coco/bbox_mAP').current()),
)))
"""


def make_environment(folder: Path) -> Path:
    """Return the Python of a new environment with all that this package needs, but without it."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    setup = setup_env.Setup(folder, version('torch'), setup_env.cache_dir())
    with setup_env.locked(setup.cache / 'lock'):
        setup.env = setup_env.probe(setup.python)
        for step in (setup.check, setup.install_torch, setup.install_mmengine, setup.install_mmcv):
            step()
        setup.install(MMDET)
    return setup.python


def pip(python: Path, *arguments: object, **env: str) -> str:
    """Run pip and return what it prints; SetupError if it fails."""
    command = [str(part) for part in (python, '-m', 'pip', *arguments)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, env={**ENV, **env})
    if done.returncode:
        raise setup_env.SetupError(f'{" ".join(command[1:])} failed:\n{(done.stdout + done.stderr)[-3000:]}')
    return done.stdout


def check(python: Path, package: Path) -> str:
    """Install a package, train with it, remove it again, and return a sentence with the figures."""
    is_sdist = package.suffix != '.whl'
    no_compiler = dict(CC='/nonexistent/cc', CXX='/nonexistent/c++', PATH=str(python.parent)) if is_sdist else {}
    before = set(pip(python, 'freeze').splitlines())
    began = time.monotonic()
    pip(python, 'install', '--no-cache-dir', package, **no_compiler)
    seconds = time.monotonic() - began
    after = set(pip(python, 'freeze').splitlines())
    if not before <= after:
        raise setup_env.SetupError(f'{package.name} changed {", ".join(sorted(before - after))}.')
    added = sorted(line.split()[0].split('==')[0] for line in after - before)

    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), '-W', 'ignore', '-c', TRAIN]
        done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
    if done.returncode:
        raise setup_env.SetupError(f'Training with {package.name} failed:\n{(done.stdout + done.stderr)[-3000:]}')
    found = json.loads(done.stdout.splitlines()[-1])
    first, last = found['losses']
    wanted = not is_sdist and not package.name.endswith('-none-any.whl')
    if found['compiled'] != wanted or not last < first or not Path(found['file']).is_relative_to(FOLDER):
        raise setup_env.SetupError(
            f'{package.name}: expected a compiled part: {wanted}, a falling loss; found {found}.'
        )
    pip(python, 'uninstall', '-y', 'uotod_mmdet')
    return (
        f'{package.name}{", no compiler" * is_sdist}: installed in {seconds:.0f} s, adds {", ".join(added)}; '
        f'{"with" if wanted else "without"} the compiled part; loss {first:.2f} -> {last:.2f}, AP {found["AP"]:.3f}'
    )


def main() -> Optional[str]:
    parser = argparse.ArgumentParser(description='Install built packages as their users do and train with each.')
    parser.add_argument('packages', nargs='+', type=Path, help='wheels and sdists')
    packages = parser.parse_args().packages
    try:
        print(f'Making an environment without uotod_mmdet in {FOLDER}', flush=True)
        python = make_environment(FOLDER)
        for package in packages:
            print(check(python, package.resolve(strict=True)), flush=True)
    except (setup_env.SetupError, OSError) as error:
        log = getattr(error, 'log', None)
        return f'check_package: {error}{f" See {log}." if log else ""}'
    return None


if __name__ == '__main__':
    sys.exit(main())
