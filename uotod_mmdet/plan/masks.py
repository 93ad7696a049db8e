"""Losses of the masks of the pairs of a plan.

What compares a prediction with a ground truth is as large as a mask, and a soft plan may give weight to all pairs. So
pairs are compared in blocks, which are computed again in the backward pass: the memory is that of a block. Where most
pairs have weight, losses that are linear in what they need of the pairs are computed by products of matrices.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from mmdet.models.losses import CrossEntropyLoss, DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .classification import sum_by_row

BLOCK = 1 << 24
"""Entries of masks of pairs (K, P) that are compared in one go; 64 MB in float32, and some times that for gradients."""


class MaskPairs(NamedTuple):
    """K pairs of R predictions with masks and G ground truths, those of one image after the other."""

    logits: Tensor  # (R, h, w)
    row: Tensor  # (K,) prediction of each pair, ascending, 0 to R - 1, each there
    gts: Tensor  # (K,) ground truth of each pair, 0 to G - 1
    weight: Tensor  # (K,)
    images: Sequence[tuple[slice, slice]]  # predictions and ground truths of each image


class Comparison(NamedTuple):
    """What the losses compare, in P points or pixels.

    Args:
        num_points: P.
        labels: Whether ``loss_mask`` gets labels, see :func:`~uotod_mmdet.plan.check_mask_losses`.
        at_once: Pairs that may be compared in one go, however large they are.
        dense: Share of all pairs of a layer that must have weight for products of matrices to pay; 0: always.
        preds: Gives logits (r, P), and takes r of the masks (r, h, w) and their places among all (r,).
        targets: Gives targets (k, P) of pairs, and takes the place of their predictions among all (k,), and their
            ground truths (k,).
        all_targets: Gives the targets of all ground truths of an image, (r, P, M), or (P, M) where these are the same
            for all predictions; takes the places of r predictions among all (r,), and the index of the image.
    """

    num_points: int
    labels: bool
    at_once: int
    dense: float
    preds: Callable[[Tensor, Tensor], Tensor]
    targets: Callable[[Tensor, Tensor], Tensor]
    all_targets: Callable[[Tensor, int], Tensor]


def mask_losses(
    loss_mask: nn.Module, loss_dice: nn.Module, pairs: MaskPairs, comparison: Comparison
) -> tuple[Tensor, Tensor]:
    """Sums of the weighted losses of the masks of all pairs.

    Args:
        loss_mask: Loss of each point.
        loss_dice: Loss of a whole mask.
        pairs: The pairs.
        comparison: What is compared of them.

    Returns:
        Sum over the pairs of the mean of ``loss_mask`` over the points, and sum of ``loss_dice``, each ().
    """
    logits, row, gts, weight, images = pairs
    weight = weight.to(logits.dtype)
    if not len(row):
        return logits.sum(), logits.sum()
    num_points, at_once, places = (
        comparison.num_points,
        comparison.at_once,
        torch.arange(len(logits), device=row.device),
    )

    def of_pairs(logits: Tensor, places: Tensor, row: Tensor, gts: Tensor, weight: Tensor) -> Tensor:
        preds = comparison.preds(logits, places)
        if len(row) > len(logits):  # else each prediction has one pair
            preds = preds.index_select(0, row)
        targets = comparison.targets(places.index_select(0, row), gts)
        dice = loss_dice(preds, targets, weight, reduction_override='none').sum()
        of_points = _of_points(loss_mask, preds, targets, comparison.labels)
        return torch.stack([(weight * sum_by_row(of_points)).sum() / num_points, dice])

    def of_all(logits: Tensor, places: Tensor, weight: Tensor, image: int) -> Tensor:
        preds, targets = comparison.preds(logits, places), comparison.all_targets(places, image)
        mixed = weight @ targets.mT if targets.dim() == 2 else (targets @ weight[:, :, None])[:, :, 0]
        object_loss, other_loss = (
            _of_points(loss_mask, preds, torch.full_like(preds, target), comparison.labels) for target in (1.0, 0.0)
        )
        of_points = mixed * object_loss + (weight.sum(1)[:, None] - mixed) * other_loss
        return torch.stack([of_points.sum() / num_points, (weight * _dice(loss_dice, preds, targets)).sum()])

    def recomputed(function: Callable, *inputs: object) -> Tensor:
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)

    size = sum((of_rows.stop - of_rows.start) * (of_gts.stop - of_gts.start) for of_rows, of_gts in images)
    if len(row) <= at_once:
        total = of_pairs(logits, places, row, gts, weight)
    elif len(row) >= comparison.dense * size and _linear(loss_mask, comparison.labels) and type(loss_dice) is DiceLoss:
        total = logits.new_zeros(2)
        for image, (of_rows, of_gts) in enumerate(images):
            step = max(1, BLOCK // (num_points * max(of_gts.stop - of_gts.start, 1)))
            some = (gts >= of_gts.start) & (gts < of_gts.stop)
            dense = weight.new_zeros(of_rows.stop - of_rows.start, of_gts.stop - of_gts.start)
            dense[row[some] - of_rows.start, gts[some] - of_gts.start] = weight[some]
            for first in range(of_rows.start, of_rows.stop, step):
                block = slice(first, min(first + step, of_rows.stop))
                of_block = dense[block.start - of_rows.start : block.stop - of_rows.start]
                total = total + recomputed(of_all, logits[block], places[block], of_block, image)
    else:
        total = logits.new_zeros(2)
        for block, some in _blocks(row.bincount().tolist(), max(at_once, BLOCK // num_points)):
            of_some = row[some] - block.start, gts[some], weight[some]
            total = total + recomputed(of_pairs, logits[block], places[block], *of_some)
    return total[0], total[1]


def _of_points(loss: nn.Module, preds: Tensor, targets: Tensor, labels: bool) -> Tensor:
    """Loss of each point, (k, P)."""
    if labels:  # 0 on the object
        losses = loss(preds.reshape(-1, 1), 1 - targets.reshape(-1).long(), reduction_override='none')
    else:
        losses = loss(preds.reshape(-1), targets.reshape(-1), reduction_override='none')
    return losses.view(preds.shape)


def _linear(loss: nn.Module, labels: bool) -> bool:
    """Whether the loss of a point is linear in its target: that of an object, and that of no object, in proportion."""
    if type(loss) is CrossEntropyLoss:
        return bool(loss.use_sigmoid) and loss.ignore_index is None
    return labels and type(loss) is FocalLoss


def _dice(loss: DiceLoss, preds: Tensor, targets: Tensor) -> Tensor:
    """mmdet's DiceLoss of r predictions (r, P) with M ground truths, (P, M) or (r, P, M); (r, M)."""
    prob = preds.sigmoid() if loss.activate else preds
    overlap, (of_preds, of_gts) = (prob[:, None] @ targets)[:, 0], (prob, targets)
    if loss.naive_dice:
        top, eps = 2 * overlap + loss.eps, loss.eps
    else:
        top, eps, of_preds, of_gts = 2 * overlap, 2 * loss.eps, prob.square(), targets.square()
    return loss.loss_weight * (1 - top / (of_preds.sum(1)[:, None] + of_gts.sum(-2) + eps))


def _blocks(counts: list[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows, and of their pairs: as many rows as have up to ``limit`` pairs together, at least one."""
    row = pair = size = 0
    for index, count in enumerate(counts):
        if size and size + count > limit:
            yield slice(row, index), slice(pair, pair + size)
            row, pair, size = index, pair + size, 0
        size += count
    yield slice(row, len(counts)), slice(pair, pair + size)
