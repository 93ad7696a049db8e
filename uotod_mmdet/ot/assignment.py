"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uotod_mmdet.ops.native import Kernel

ASSIGN = Kernel(
    'uotod_assign',
    'cost: f32[B N M]~, cost.stride, row_mask: bool[B N], column_mask: bool[B M], B, N, M, columns: i64[B N]',
)


def assignment(cost: Tensor, column_mask: Optional[Tensor] = None, row_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. On a processor csrc/assignment.cpp solves float32 costs; any other batch goes to the host in one transfer,
    where scipy solves it, with the same result.

    Args:
        cost: Finite costs of any real dtype, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.
        row_mask: False on padded rows, (B, N). None: all are real.

    Returns:
        Column of each row, -1 where it has none, (B, N).

    Raises:
        TypeError: If ``cost`` or a mask is no tensor.
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
    cost = cost.detach()
    if cost.numel() and ASSIGN.takes(cost=cost):
        row_mask, column_mask = (
            torch.ones(batch, count, dtype=torch.bool) if mask is None else mask.contiguous()
            for mask, count in ((row_mask, rows), (column_mask, columns))
        )
        chosen = torch.empty(batch, rows, dtype=torch.long)
        if ASSIGN(cost=cost, row_mask=row_mask, column_mask=column_mask, columns=chosen):
            raise ValueError('cost holds NaN or infinite entries')
        return chosen
    host_cost = cost.cpu().resolve_neg()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    row_mask, column_mask = (None if mask is None else mask.cpu().numpy() for mask in (row_mask, column_mask))
    matching = np.full(host_cost.shape[:2], -1)
    for index, problem in enumerate(host_cost):
        real_rows, real_columns = (
            np.arange(count) if mask is None else mask[index].nonzero()[0]
            for mask, count in ((row_mask, rows), (column_mask, columns))
        )
        problem = problem[real_rows][:, real_columns]
        if not np.isfinite(problem).all():
            raise ValueError('cost holds NaN or infinite entries')
        chosen_rows, chosen = linear_sum_assignment(problem)
        matching[index, real_rows[chosen_rows]] = real_columns[chosen]
    return torch.from_numpy(matching).to(cost.device)
