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
    host_cost = cost.detach().cpu()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    row_mask, column_mask = (None if mask is None else mask.cpu().numpy() for mask in (row_mask, column_mask))
    whole = row_mask is None or bool(row_mask.all())
    matching = np.zeros(host_cost.shape, dtype=np.float32)
    for index, problem in enumerate(host_cost):
        if column_mask is None:
            columns = slice(None)
        else:
            columns = column_mask[index].nonzero()[0]
            if len(columns) and columns[-1] == len(columns) - 1:
                columns = slice(len(columns))  # padding comes last, as a rule: a view in place of a copy
        if whole:
            rows, chosen = linear_sum_assignment(problem[:, columns])
        else:
            real = row_mask[index].nonzero()[0]
            rows, chosen = linear_sum_assignment(problem[real][:, columns])
            rows = real[rows]
        matching[index, rows, chosen if isinstance(columns, slice) else columns[chosen]] = 1
    return torch.from_numpy(matching).to(cost)
