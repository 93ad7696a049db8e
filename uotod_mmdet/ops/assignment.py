"""One-to-one assignments and their plans."""

from typing import Optional, Union

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from . import deferred
from .native import Kernel

KERNEL = Kernel(
    'uotod_assign',
    'cost: f32[B N M]~, cost.stride, row_mask: bool[B N], column_mask: bool[B M], B, N, M, columns: i64[B N]',
)


def assign(cost: Tensor, row_mask: Optional[Tensor], column_mask: Optional[Tensor]) -> Tensor:
    """Solve each assignment of a batch; :func:`uotod_mmdet.ot.assignment` explains and checks the arguments.

    Raises:
        ValueError: If a real entry of ``cost`` is not finite.
    """
    batch, rows, columns = cost.shape
    cost = cost.detach()
    solve = KERNEL.bind(cost=cost) if cost.numel() else None
    if solve is not None:
        row_mask, column_mask = (
            torch.ones(batch, count, dtype=torch.bool) if mask is None else mask.contiguous()
            for mask, count in ((row_mask, rows), (column_mask, columns))
        )
        chosen = torch.empty(batch, rows, dtype=torch.long)
        if solve(row_mask=row_mask, column_mask=column_mask, columns=chosen):
            raise ValueError('cost holds NaN or infinite entries')
        return chosen
    on_host = cost.cpu().resolve_neg()
    host_cost = (on_host.float() if cost.dtype in (torch.float16, torch.bfloat16) else on_host).numpy()
    sides = _places(row_mask, batch), _places(column_mask, batch)
    matching = np.full((batch, rows), -1)
    for places, problem, real_rows, real_columns in zip(matching, host_cost, *sides):
        problem = problem[real_rows][:, real_columns]
        if not np.isfinite(problem).all():
            raise ValueError('cost holds NaN or infinite entries')
        found_rows, found_columns = linear_sum_assignment(problem)
        places[np.arange(rows)[real_rows][found_rows]] = np.arange(columns)[real_columns][found_columns]
    return torch.from_numpy(matching).to(cost.device)


def _places(mask: Optional[Tensor], batch: int) -> list[Union[slice, np.ndarray]]:
    """The real places of each problem; a slice, which copies nothing, where padding is at the end."""
    if mask is None:
        return [slice(None)] * batch
    found: list = []
    for real in mask.cpu().numpy():
        number = int(real.sum())
        found.append(slice(number) if real[:number].all() else real.nonzero()[0])
    return found


def one_hot_plan(columns: Tensor, row_mask: Tensor, background: bool, like: Tensor) -> Tensor:
    """The plan of an assignment.

    Args:
        columns: Column of each row, -1 where it has none, (B, N).
        row_mask: False on rows that take no part, (B, N).
        background: Whether rows without a column go to the last one.
        like: A tensor of the shape (B, N, K), dtype and device of the plan.
    """
    rows = torch.eye(like.size(2), dtype=like.dtype, device=like.device).roll(1, 0)  # row j + 1 goes to column j
    if not background:
        rows[0] = 0
    plan = rows.index_select(0, (columns + 1).flatten()).view(like.shape)
    return plan if deferred.host_may_wait(row_mask) and row_mask.all() else plan * row_mask[:, :, None]
