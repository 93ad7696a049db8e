"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional, Union

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assignment(cost: Tensor, column_mask: Optional[Tensor] = None, row_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. The batch goes to the host in one transfer, where scipy solves one problem after the other.

    Args:
        cost: Finite costs of any real dtype, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.
        row_mask: False on padded rows, (B, N). None: all are real.

    Returns:
        Column of each row, -1 where it has none, (B, N).

    Raises:
        TypeError: If ``cost`` or a mask is not a tensor.
        ValueError: If ``cost`` or a mask has another shape or dtype, or a real entry of ``cost`` is not finite.
    """
    for name, values in (('cost', cost), ('row_mask', row_mask), ('column_mask', column_mask)):
        if not isinstance(values, Tensor) and (values is not None or name == 'cost'):
            raise TypeError(f'{name} must be a tensor, got {type(values).__name__}')
    if cost.dim() != 3 or cost.is_complex():
        raise ValueError(f'cost must be real, of shape (B, N, M), got {cost.dtype} of shape {tuple(cost.shape)}')
    batch, rows, columns = cost.shape
    for name, mask, shape in (('row_mask', row_mask, (batch, rows)), ('column_mask', column_mask, (batch, columns))):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
            raise ValueError(f'{name} must be bool of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}')
    host_cost = cost.detach().cpu().resolve_neg()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    all_finite = bool(np.isfinite(host_cost.sum()))  # padding included, which may be anything
    sides = _places(row_mask, batch, rows), _places(column_mask, batch, columns)
    matching = np.full((batch, rows), -1)
    for chosen, problem, real_rows, real_columns in zip(matching, host_cost, *sides):
        problem = problem[real_rows][:, real_columns]
        if not all_finite and not np.isfinite(problem).all():
            raise ValueError('cost holds NaN or infinite entries')
        found_rows, found_columns = linear_sum_assignment(problem)
        chosen[np.arange(rows)[real_rows][found_rows]] = np.arange(columns)[real_columns][found_columns]
    return torch.from_numpy(matching).to(cost.device)


def _places(mask: Optional[Tensor], batch: int, count: int) -> list[Union[slice, np.ndarray]]:
    """The real places of each problem; a slice, which copies nothing, where padding is at the end."""
    if mask is None:
        return [slice(None)] * batch
    found: list = []
    for real in mask.cpu().numpy():
        number = int(real.sum())
        found.append(slice(number) if real[:number].all() else real.nonzero()[0])
    return found
