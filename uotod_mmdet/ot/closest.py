"""The limits of unbalanced transport in which one side is free: all mass goes to what is closest, hard or softly."""

import torch
from torch import Tensor


def closest_column(cost: Tensor, column_mask: Tensor, row_mask: Tensor) -> Tensor:
    """Each row goes whole to its cheapest column: the limit reg = 0, reg_b = 0, P1 = a.

    Args:
        cost: (B, N, K).
        column_mask: False on columns that take nothing, (B, K).
        row_mask: False on rows that give nothing, (B, N).

    Returns:
        0/1 plan with row sums 1 (0 on masked rows and where no column takes anything), (B, N, K).
    """
    cost = cost.masked_fill(~column_mask[:, None], torch.inf)
    plan = torch.zeros_like(cost).scatter_(2, cost.argmin(2, keepdim=True), 1)
    return plan * column_mask[:, None] * row_mask[:, :, None]


def closest_row(cost: Tensor, column_mask: Tensor) -> Tensor:
    """Each column goes whole to its cheapest row: the limit reg = 0, reg_a = 0, P^T1 = b.

    Args:
        cost: (B, N, K), inf on rows that take nothing.
        column_mask: False on columns that give nothing, (B, K).

    Returns:
        0/1 plan with column sums 1 (0 on masked columns), (B, N, K).
    """
    plan = torch.zeros_like(cost).scatter_(1, cost.argmin(1, keepdim=True), 1)
    return plan * column_mask[:, None]


def softmin(cost: Tensor, reg: float, dim: int, column_mask: Tensor, row_mask: Tensor) -> Tensor:
    """exp(-cost / reg), normalised along ``dim``: 1 over rows, 2 over columns.

    Args:
        cost: (B, N, K).
        reg: Temperature in units of cost, > 0.
        dim: Dimension along which the result sums to 1.
        column_mask: False on columns that take no part, (B, K).
        row_mask: False on rows that take no part, (B, N).

    Returns:
        (B, N, K), exactly 0 on masked columns and rows.
    """
    mask = column_mask[:, None] & row_mask[:, :, None]
    # Where nothing takes part, softmax gives NaN, which the mask turns to 0.
    return torch.where(mask, (-cost / reg).masked_fill(~mask, -torch.inf).softmax(dim), 0)
