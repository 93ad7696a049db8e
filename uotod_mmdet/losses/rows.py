"""Shared code of Quality Focal and Varifocal Loss: targets that are mostly 0, and weights of rows."""

from typing import Optional, Union

import torch
from torch import Tensor


def nonzero_entries(target: Tensor) -> tuple[Tensor, Tensor]:
    """Positive entries of the flattened target (N, C), which holds no negative ones, and their values."""
    rows = (target.sum(1) > 0).nonzero()[:, 0]  # a sum is five times faster than a maximum
    values = target[rows]
    row, column = values.nonzero(as_tuple=True)
    return rows[row] * target.size(1) + column, values[row, column]


def row_factor(
    weight: Optional[Union[float, Tensor]],
    reduction: str,
    avg_factor: Optional[Union[float, Tensor]],
    rows: Tensor,
    terms: int,
) -> Tensor:
    """Factor of each row's loss before the sum: mmdet's ``weight_reduce_loss`` as one number.

    Args:
        weight: (N,), a number, or None.
        reduction: 'none', 'mean' or 'sum'.
        avg_factor: As in mmdet.
        rows: Any tensor with N rows, of the dtype and device wanted.
        terms: What 'mean' divides by without ``avg_factor``.
    """
    factor = rows.new_ones(1) if weight is None else rows.new_ones(1) * weight
    if reduction == 'mean':
        divisor = max(terms, 1) if avg_factor is None else avg_factor + torch.finfo(torch.float32).eps
        factor = factor / divisor
    return factor.expand(len(rows))
