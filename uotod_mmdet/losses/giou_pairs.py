"""Where 0.1.0 had ``giou_losses``; the function is now in :mod:`uotod_mmdet.ops`."""

from uotod_mmdet.ops import giou_losses

__all__ = ['giou_losses']
