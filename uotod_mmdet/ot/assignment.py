"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assignment(cost: Tensor, column_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. The whole batch goes to the host in one transfer, where scipy solves it.

    Args:
        cost: Finite costs, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.

    Returns:
        0/1 matching in the dtype and on the device of ``cost``, (B, N, M).
    """
    matching = torch.zeros(cost.shape, dtype=cost.dtype)
    host_cost = cost.detach().cpu()
    host_cost = (host_cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else host_cost).numpy()
    host_mask = None if column_mask is None else column_mask.cpu()
    for index, problem in enumerate(host_cost):
        if host_mask is None:
            rows, columns = linear_sum_assignment(problem)
        else:
            real = host_mask[index].nonzero().squeeze(1).numpy()
            rows, columns = linear_sum_assignment(problem[:, real])
            columns = real[columns]
        matching[index, rows, columns] = 1
    return matching.to(cost.device)
