"""Optimal transport on batches of small dense problems: tensors in, plans out. Knows nothing of detection."""

from .assignment import assignment
from .sinkhorn import SinkhornResult, sinkhorn

__all__ = ['SinkhornResult', 'assignment', 'sinkhorn']
