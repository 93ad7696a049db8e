"""Optimal-transport matching and quality-aware losses for MMDetection 3.x."""

from .compat import allow_own_checkpoints, check_versions
from .version import __version__

check_versions()
allow_own_checkpoints()

from .registry import share_with_mmdet  # noqa: E402  (the checks come first)

share_with_mmdet()

__all__ = ['__version__']
