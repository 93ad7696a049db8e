"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uotod_mmdet import native


def assignment(cost: Tensor, column_mask: Optional[Tensor] = None, row_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. On a processor csrc/assignment.cpp solves float32 costs; any other batch goes to the host in one transfer,
    where scipy solves it, with the same result.

    Args:
        cost: Finite costs, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.
        row_mask: False on padded rows, (B, N). None: all are real.

    Returns:
        Column of each row, -1 where it has none, (B, N).
    """
    batch, rows, columns = cost.shape
    if cost.numel() and cost.stride(0) == rows * cost.stride(1) and cost.stride(2) == 1 and native.fits(cost[0, 0]):
        masks = (
            torch.ones(batch, count, dtype=torch.bool) if mask is None else mask.contiguous()
            for mask, count in ((row_mask, rows), (column_mask, columns))
        )
        chosen = torch.empty(batch, rows, dtype=torch.long)
        native.call('uotod_assign', cost, cost.stride(1), *masks, *cost.shape, chosen)
        return chosen
    host_cost = cost.detach().cpu()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    row_mask, column_mask = (None if mask is None else mask.cpu().numpy() for mask in (row_mask, column_mask))
    matching = np.full(host_cost.shape[:2], -1)
    for index, problem in enumerate(host_cost):
        real_rows, real_columns = (
            np.arange(count) if mask is None else mask[index].nonzero()[0]
            for mask, count in ((row_mask, rows), (column_mask, columns))
        )
        chosen_rows, chosen = linear_sum_assignment(problem[real_rows][:, real_columns])
        matching[index, real_rows[chosen_rows]] = real_columns[chosen]
    return torch.from_numpy(matching).to(cost.device)
