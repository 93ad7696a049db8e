"""Optimal transport on batches of small dense problems: tensors in, plans out. Knows nothing of detection."""

from .assignment import assignment
from .closest import closest_column, closest_row, softmin
from .pot_solver import solve_with_pot
from .sinkhorn import SinkhornResult, sinkhorn

__all__ = ['SinkhornResult', 'assignment', 'closest_column', 'closest_row', 'sinkhorn', 'softmin', 'solve_with_pot']
