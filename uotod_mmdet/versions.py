"""Check that the packages we build on are there, in versions that work together."""

import importlib
from types import ModuleType

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
# The upper bound of mmcv is mmdet's to set: its maintained forks take later ones.
_RANGES = {'mmengine': ('0.10.0', '1'), 'mmcv': ('2.0.0', '3'), 'mmdet': ('3.3.0', '4')}


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


def check_versions() -> None:
    """Check that mmengine, mmcv (with compiled ops) and mmdet are there in versions that work together.

    Raises:
        RuntimeError: Naming the package, the version found and the command that fixes it. Not an ImportError, which
            mmengine's registries swallow.
    """
    for package, (lowest, above) in _RANGES.items():
        found = _import(package).__version__
        if not Version(lowest) <= Version(found) < Version(above):
            raise RuntimeError(f'uotod_mmdet needs {package}>={lowest},<{above}, found {found}. {_how_to_fix(package)}')
        if package == 'mmcv':
            try:
                importlib.import_module('mmcv.ops')
            except ImportError as error:
                raise RuntimeError(
                    f'mmcv {found} has no compiled ops ({error}): mmcv-lite or a build without MMCV_WITH_OPS=1. '
                    f'{_how_to_fix("mmcv")}'
                ) from error
