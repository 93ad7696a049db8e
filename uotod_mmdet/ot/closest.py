"""The limits of unbalanced transport in which one side is free: everyone goes to what is closest, hard or softly."""

import torch
from torch import Tensor


def closest_column(cost: Tensor, column_mask: Tensor) -> Tensor:
    """Each row whole to its cheapest column: the limit reg = 0, reg_b = 0, P1 = a.

    Args:
        cost: (B, N, K).
        column_mask: False on columns that take nothing, (B, K).

    Returns:
        0/1 plan with row sums 1 (0 where no column takes anything), (B, N, K).
    """
    cost = cost.masked_fill(~column_mask[:, None], torch.inf)
    plan = torch.zeros_like(cost).scatter_(2, cost.argmin(2, keepdim=True), 1)
    return plan * column_mask[:, None]


def closest_row(cost: Tensor, column_mask: Tensor) -> Tensor:
    """Each column whole to its cheapest row: the limit reg = 0, reg_a = 0, P^T1 = b.

    Args:
        cost: (B, N, K).
        column_mask: False on columns that give nothing, (B, K).

    Returns:
        0/1 plan with column sums 1 (0 on masked columns), (B, N, K).
    """
    plan = torch.zeros_like(cost).scatter_(1, cost.argmin(1, keepdim=True), 1)
    return plan * column_mask[:, None]


def softmin(cost: Tensor, reg: float, dim: int, mask: Tensor) -> Tensor:
    """exp(-cost / reg), normalised along ``dim``: 1 over rows, 2 over columns.

    Args:
        cost: (B, N, K).
        reg: Temperature in units of cost, > 0.
        dim: Dimension along which the result sums to 1.
        mask: False on columns that take no part, (B, K).

    Returns:
        (B, N, K), exactly 0 on masked columns.
    """
    logits = -cost / reg
    if dim == 2:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    # Where no column takes part, softmax gives NaN, which the mask turns to 0.
    return torch.where(mask[:, None], logits.softmax(dim), 0)
