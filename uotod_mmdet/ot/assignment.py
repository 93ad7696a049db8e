"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assignment(cost: Tensor, column_mask: Optional[Tensor] = None, row_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. The whole batch goes to the host in one transfer, where scipy solves it.

    Args:
        cost: Finite costs, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.
        row_mask: False on padded rows, (B, N). None: all are real.

    Returns:
        0/1 matching in the dtype and on the device of ``cost``, (B, N, M).
    """
    matching = torch.zeros(cost.shape, dtype=cost.dtype)
    host_cost = cost.detach().cpu()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    row_mask, column_mask = (None if mask is None else mask.cpu().numpy() for mask in (row_mask, column_mask))
    for index, problem in enumerate(host_cost):
        real_rows = np.arange(len(problem)) if row_mask is None else row_mask[index].nonzero()[0]
        real_columns = np.arange(problem.shape[1]) if column_mask is None else column_mask[index].nonzero()[0]
        rows, columns = linear_sum_assignment(problem[np.ix_(real_rows, real_columns)])
        matching[index, real_rows[rows], real_columns[columns]] = 1
    return matching.to(cost.device)
