"""Check that the packages we build on are there, in versions that work together."""

import importlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from types import ModuleType
from typing import Optional

from packaging.version import Version

_FIX = {
    'mmengine': "pip install 'mmengine>=0.10.4,<1'",
    'mmcv': (
        'pip uninstall -y mmcv mmcv-lite && pip install "setuptools<81" wheel ninja && '
        # pip's own cache of wheels does not know which torch a wheel was compiled for
        "MMCV_WITH_OPS=1 pip install --no-cache-dir --no-build-isolation --no-binary mmcv 'mmcv>=2.0,<2.2'"
    ),
    'mmdet': "pip install 'mmdet>=3.3,<4'",
}
_FIX['torch'] = f"pip install 'torch>=2.1' && {_FIX['mmcv']}"
# The upper bound of mmcv is mmdet's to set: its maintained forks take later ones. torch has none: later versions than
# the tested ones (docs/compatibility.md) are not refused.
_RANGES = {'torch': ('2.1', None), 'mmengine': ('0.10.0', '1'), 'mmcv': ('2.0.0', '3'), 'mmdet': ('3.3.0', '4')}
_FORKS = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection'}


def _how_to_fix(package: str) -> str:
    return f'To fix it: `make env` in a checkout of uotod_mmdet, or `{_FIX[package]}`.'


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RuntimeError(f'uotod_mmdet cannot import {package}: {error}. {_how_to_fix(package)}') from error
    except AssertionError as error:  # mmdet's own check of mmcv and mmengine
        guilty = 'mmengine' if str(error).startswith('MMEngine') else 'mmcv'
        raise RuntimeError(f'{error} {_how_to_fix(guilty)}') from error


def _distribution(name: str) -> Optional[Distribution]:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _check_lineages() -> None:
    """Raise RuntimeError if a package and its fork are installed in one folder: they overwrite each other's files."""
    for package, name in _FORKS.items():
        fork = _distribution(name)
        if fork is None:
            continue
        for original in map(_distribution, [package, 'mmcv-lite'] if package == 'mmcv' else [package]):
            if original is not None and str(original.locate_file('')) == str(fork.locate_file('')):
                both = original.metadata['Name'], name
                raise RuntimeError(
                    f'{both[0]} {original.version} and {both[1]} {fork.version} are both installed in '
                    f'{fork.locate_file("")}, and both bring the module {package}: which of their files are there '
                    f'depends on the order of installation. To fix it: `pip uninstall -y {both[0]} {both[1]}`, which '
                    'removes the files of both, then install the one that the others here go with: mmengine, mmcv '
                    'and mmdet, or onedl-mmengine, onedl-mmcv and onedl-mmdetection.'
                )


def _check_numpy(torch: str) -> None:
    numpy = _import('numpy').__version__
    if Version(numpy).release >= (2,) and Version(torch).release < (2, 3):
        raise RuntimeError(
            f'numpy {numpy} does not work with torch {torch}: torch before 2.3 was built for numpy 1. To fix it: '
            "`pip install 'numpy<2'`, or a later torch with an mmcv compiled for it."
        )


def check_versions() -> None:
    """Check that torch, mmengine, mmcv (with compiled ops) and mmdet are there in versions that work together.

    Raises:
        RuntimeError: Naming the package, the version found and the command that fixes it. Not an ImportError, which
            mmengine's registries swallow.
    """
    _check_lineages()
    for package, (lowest, above) in _RANGES.items():
        found = _import(package).__version__
        version = Version(Version(found).base_version)  # containers have builds such as 2.1.0a0+git
        if version < Version(lowest) or (above and version >= Version(above)):
            bounds = f'>={lowest},<{above}' if above else f'>={lowest}'
            raise RuntimeError(f'uotod_mmdet needs {package}{bounds}, found {found}. {_how_to_fix(package)}')
        if package == 'torch':
            _check_numpy(found)
        if package == 'mmcv':
            try:
                importlib.import_module('mmcv.ops')
            except ImportError as error:
                raise RuntimeError(
                    f'mmcv {found} has no compiled ops ({error}): mmcv-lite or a build without MMCV_WITH_OPS=1. '
                    f'{_how_to_fix("mmcv")}'
                ) from error
