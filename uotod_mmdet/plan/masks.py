"""Losses of the masks of the pairs of a plan."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .classification import sum_by_row

BLOCK = 1 << 24
"""Entries of masks of pairs (K, P) that are compared in one go; 64 MB in float32, and some times that for gradients."""


def mask_losses(
    loss_mask: nn.Module,
    loss_dice: nn.Module,
    labels: bool,
    logits: Tensor,
    row: Tensor,
    gts: Tensor,
    weight: Tensor,
    compared: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    num_points: int,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Sums of the weighted losses of the masks of all pairs.

    What compares a prediction with a ground truth is as large as a mask. So many pairs are compared in blocks, which
    are computed again in the backward pass: the memory is that of a block, not of all pairs.

    Args:
        loss_mask: Loss of each point.
        loss_dice: Loss of a whole mask.
        labels: How ``loss_mask`` takes its target, see :func:`~uotod_mmdet.plan.check_mask_losses`.
        logits: Masks of the predictions that have pairs, (R, h, w).
        row: Prediction of each pair, in ascending order, 0 to R - 1, (K,).
        gts: Ground truth of each pair, (K,).
        weight: (K,).
        compared: Gives logits and targets of k pairs, both (k, P), and takes r of the ``logits`` (r, h, w), their
            places in ``logits`` (r,), the place of each pair's prediction among these (k,), and its ground truth (k,).
        num_points: P.
        at_once: Pairs that may be compared in one go, however large they are.

    Returns:
        Sum over the pairs of the mean of ``loss_mask`` over the points, and sum of ``loss_dice``, each ().
    """

    def of_block(logits: Tensor, places: Tensor, row: Tensor, gts: Tensor, weight: Tensor) -> Tensor:
        pred, target = compared(logits, places, row, gts)
        dice = loss_dice(pred, target, weight, reduction_override='none').sum()
        if labels:
            of_points = loss_mask(pred.reshape(-1, 1), 1 - target.reshape(-1).long(), reduction_override='none')
        else:
            of_points = loss_mask(pred.reshape(-1), target.reshape(-1), reduction_override='none')
        return torch.stack([(weight * sum_by_row(of_points.view(len(pred), -1))).sum() / num_points, dice])

    if not len(row):
        return logits.sum(), logits.sum()
    total = logits.new_zeros(2)
    limit = max(at_once, BLOCK // num_points)
    places = torch.arange(len(logits), device=logits.device)
    if len(row) <= limit:
        total = of_block(logits, places, row, gts, weight)
    else:
        for rows, some in _blocks(row.bincount().tolist(), limit):
            block = logits[rows], places[rows], row[some] - rows.start, gts[some], weight[some]
            total = total + checkpoint(of_block, *block, use_reentrant=False, preserve_rng_state=False)
    return total[0], total[1]


def _blocks(counts: list[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows, and of their pairs: as many rows as have up to ``limit`` pairs together, at least one."""
    row = pair = size = 0
    for index, count in enumerate(counts):
        if size and size + count > limit:
            yield slice(row, index), slice(pair, pair + size)
            row, pair, size = index, pair + size, 0
        size += count
    yield slice(row, len(counts)), slice(pair, pair + size)
