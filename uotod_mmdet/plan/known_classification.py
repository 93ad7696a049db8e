"""Faster forms of mmdet's classification losses under a plan."""

from typing import Optional

import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, QualityFocalLoss, VarifocalLoss
from torch import Tensor, nn

from uotod_mmdet.ops import focal_rows, pays_in_blocks, power, softmax_rows, softplus, to_device_of

from .classification import Reading, Rows, declare_reading, keep_hardest, sum_by_row


def quality_focal_rows(logits: Tensor, index: Tensor, quality: Tensor, row_weight: Tensor, beta: float) -> Tensor:
    """Weighted Quality Focal Loss of each row, (N,), where all but some entries have the target 0.

    Args:
        logits: (N, C), float32 or float64.
        index: Entries of the flattened logits that have a quality, each once, ascending, (K,).
        quality: Their targets, (K,).
        row_weight: (N,).
        beta: Exponent of the modulating factor.
    """
    weight = row_weight[index.div(logits.size(1), rounding_mode='floor')]

    def entry_losses(x: Tensor) -> Tensor:
        distance = quality - x.sigmoid()
        if beta % 2:  # an even power needs no absolute value
            distance = distance.abs()
        return weight * power(distance, beta) * (softplus(x) - x * quality)

    return focal_rows(logits, beta, row_weight, index, entry_losses)


def varifocal_rows(
    logits: Tensor,
    index: Tensor,
    quality: Tensor,
    row_weight: Tensor,
    alpha: float,
    gamma: float,
    iou_weighted: bool,
) -> Tensor:
    """Weighted Varifocal Loss of each row, (N,), where all but some entries have no quality.

    Args:
        logits: (N, C), float32 or float64.
        index: Entries of the flattened logits that have a quality, each once, ascending, (K,).
        quality: Their qualities, > 0, (K,).
        row_weight: (N,).
        alpha, gamma, iou_weighted: See :func:`~uotod_mmdet.losses.varifocal_loss`.
    """
    weight = row_weight[index.div(logits.size(1), rounding_mode='floor')]
    focal = quality if iou_weighted else 1.0

    def entry_losses(x: Tensor) -> Tensor:
        return weight * focal * (softplus(x) - x * quality)

    return focal_rows(logits, gamma, _scaled(row_weight, alpha), index, entry_losses)


def _scaled(row_weight: Tensor, factor: float) -> Tensor:
    """``factor * row_weight``; an expanded number stays expanded."""
    if row_weight.dim() and not row_weight.stride(0):
        return (factor * row_weight[:1]).expand_as(row_weight)
    return factor * row_weight


def entries(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of the flattened scores that pairs claim, ascending (E,), the entry of each pair (K,), weights (E,)."""
    pairs = rows.pairs
    index, entry = torch.unique(pairs.rows * rows.scores.size(1) + rows.labels, return_inverse=True)
    return index, entry, pairs.weight.new_zeros(len(index)).index_add(0, entry, pairs.weight)


def entry_qualities(rows: Rows, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of the flattened scores with a mean quality above 0, ascending (E,), and these qualities (E,)."""
    index, entry, weight = entries(rows)
    of_rows = mass[index.div(rows.scores.size(1), rounding_mode='floor')]
    quality = torch.zeros_like(weight).index_add(0, entry, (rows.pairs.weight * rows.quality()).to(weight.dtype))
    quality = (quality / of_rows).clamp(max=1).to(rows.scores.dtype)
    return index[quality > 0], quality[quality > 0]


def faster_quality(loss: QualityFocalLoss, rows: Rows) -> Optional[Tensor]:
    """Quality Focal Loss of mmdet's class or of ours."""
    if rows.num_negatives is not None or loss.activated or not pays_in_blocks(rows.scores):
        return None
    mass = rows.pairs.row_mass
    return loss.loss_weight * quality_focal_rows(rows.scores, *entry_qualities(rows, mass), mass, loss.beta)


def faster_varifocal(loss: VarifocalLoss, rows: Rows) -> Optional[Tensor]:
    """Varifocal Loss of mmdet's class or of ours."""
    if rows.num_negatives is not None or not pays_in_blocks(rows.scores):
        return None
    mass, options = rows.pairs.row_mass, (loss.alpha, loss.gamma, loss.iou_weighted)
    return loss.loss_weight * varifocal_rows(rows.scores, *entry_qualities(rows, mass), mass, *options)


def _faster_focal(loss: FocalLoss, rows: Rows) -> Optional[Tensor]:
    if rows.num_negatives is not None or not loss.use_sigmoid or loss.activated:
        return None
    if not pays_in_blocks(rows.scores):
        return _sigmoid(loss, rows)
    mass, (index, _, weight) = rows.pairs.row_mass, entries(rows)
    alpha, gamma = loss.alpha, loss.gamma
    rest = (1 - alpha) * (mass[index.div(rows.scores.size(1), rounding_mode='floor')] - weight)

    def entry_losses(x: Tensor) -> Tensor:
        prob = x.sigmoid()
        return alpha * weight * power(1 - prob, gamma) * softplus(-x) + rest * power(prob, gamma) * softplus(x)

    return loss.loss_weight * focal_rows(rows.scores, gamma, (1 - alpha) * mass, index, entry_losses)


def _faster_cross_entropy(loss: CrossEntropyLoss, rows: Rows) -> Optional[Tensor]:
    if loss.use_mask or loss.avg_non_ignore or loss.ignore_index is not None:
        return None
    if loss.use_sigmoid:
        return None if rows.num_negatives is not None or loss.class_weight is not None else _sigmoid(loss, rows)
    pairs, background, weight = rows.pairs, rows.pairs.background, rows.pairs.weight
    if loss.class_weight is not None:
        class_weight = to_device_of(rows.scores, loss.class_weight)
        background = background * class_weight[rows.background_label]
        weight = weight * class_weight.index_select(0, rows.labels)
    given = pairs.rows, rows.labels, weight
    if rows.num_negatives is None:
        return loss.loss_weight * softmax_rows(rows.scores, rows.background_label, background, *given)
    none = torch.zeros_like(background), *(tensor[:0] for tensor in given)
    of_background = softmax_rows(rows.scores, rows.background_label, background, *none[1:])
    matched = softmax_rows(rows.scores, rows.background_label, none[0], *given)
    return loss.loss_weight * (keep_hardest(of_background, rows.num_negatives) + matched)


def _sigmoid(loss: nn.Module, rows: Rows) -> Tensor:
    """Losses that are sums over classes: a pair differs from the background in one term, so no row is copied."""
    scores, labels, pairs = rows.scores, rows.labels, rows.pairs
    background = labels.new_full(scores.shape[:1], rows.background_label)
    losses = sum_by_row(loss(scores, background, pairs.row_mass, reduction_override='none'))
    score, own = scores.flatten()[pairs.rows * scores.size(1) + labels][:, None], torch.zeros_like(labels)
    matched, instead = (
        sum_by_row(loss(score, label, pairs.weight, reduction_override='none')) for label in (own, own + 1)
    )
    return losses.index_add(0, pairs.rows, (matched - instead).to(losses.dtype))


declare_reading(FocalLoss, Reading(faster=_faster_focal))
declare_reading(CrossEntropyLoss, Reading(faster=_faster_cross_entropy))
declare_reading(QualityFocalLoss, Reading(target='quality', faster=faster_quality))
declare_reading(VarifocalLoss, Reading(target='quality', weight='entry', faster=faster_varifocal))
