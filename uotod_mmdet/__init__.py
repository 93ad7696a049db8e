"""Optimal-transport matching and quality-aware losses for MMDetection 3.x."""

from .version import __version__
from .versions import check_versions

check_versions()

from .checkpoint import allow_own_checkpoints  # noqa: E402  (the check comes first)
from .registry import share_with_mmdet  # noqa: E402

allow_own_checkpoints()
share_with_mmdet()

__all__ = ['__version__']
