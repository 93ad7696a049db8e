"""The expansion: from a plan to weighted pairs of predictions and ground truths, and mmdet's losses on them.

A plan says how much of prediction i goes to ground truth j. mmdet's losses take a weight for each row; so training on
a plan is running them on the rows (i, j) with weight P[i, j], and on all predictions as background with weight
P[i, background]. The cost is that of N + K rows for K pairs, and no tensor is larger than the predictions.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Optional
from weakref import WeakKeyDictionary

import numpy as np
import torch
from mmdet.models.losses import (
    CrossEntropyLoss,
    FocalLoss,
    GIoULoss,
    L1Loss,
    QualityFocalLoss,
    SmoothL1Loss,
    VarifocalLoss,
)
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from uotod_mmdet.arguments import number
from uotod_mmdet.device import act_if, host_may_wait, to_device_of
from uotod_mmdet.native import Kernel

from .checks import checked
from .contract import sum_by_row
from .focal_sum import focal_sum, in_blocks, softplus
from .giou_pairs import giou_losses
from .quality_focal_loss import QualityFocalLoss as OurQualityFocalLoss
from .quality_focal_loss import quality_focal_rows
from .varifocal_loss import VarifocalLoss as OurVarifocalLoss
from .varifocal_loss import varifocal_rows

MIN_WEIGHT = 1e-5
"""Pairs lighter than this are dropped unless a user says otherwise.

Measured on random boxes, 8 x 900 x 50 and 2 x 8732 x 20: this changes the loss by 1e-6 to 5e-4 of itself.
"""


ALL_PAIRS = 1 << 20
"""See :func:`expand`."""

EXPAND = Kernel(
    'uotod_expand',
    'plan: f32[B N K], B, N, K, min_weight: float, counts: i64[T], fill: int, rows: i64[P]?, gts: i64[P]?, '
    'images: i64[P]?, weights: f32[P]?, background: f32[R]?',
)
SUM_GROUPS = Kernel('uotod_sum_groups', 'values: f32[K], groups: i64[K], K, sums: f32[G], G')
STATISTICS = Kernel(
    'uotod_plan_statistics',
    'rows: i64[K], gts: i64[K], weights: f32[K], K, background: f32[R], R, gt_mask: bool[G], G, values: f64[4]',
)
_SOFTMAX = 'scores: f32[N C], N, C, label: int, background: f32[N], rows: i64[K], labels: i64[K], weights: f32[K], K, '
SOFTMAX_LOSSES = Kernel('uotod_softmax_losses', _SOFTMAX + 'losses: f32[N], log_sums: f32[N 2]')
SOFTMAX_GRADIENT = Kernel(
    'uotod_softmax_gradient', _SOFTMAX + 'log_sums: f32[N 2], grad: f32[N]~, grad.stride, gradient: f32[N C]'
)


class Pairs(NamedTuple):
    """A plan (B, N, M + 1) as K weighted pairs and B * N background weights, float32 or float64."""

    rows: Tensor  # (K,) prediction of the flattened batch, b * N + i, ascending
    gts: Tensor  # (K,) ground truth of the flattened, padded batch, b * M + j
    images: Tensor  # (K,) b
    weight: Tensor  # (K,) P[b, i, j]
    background: Tensor  # (B * N,) P[b, i, M]
    num_images: int  # B

    def sum_by_image(self, values: Tensor) -> Tensor:
        """Sums of a value of each pair (K,), (B,)."""
        return _SumByImage.apply(values, self.images, self.num_images)

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Sums of a value of each pair (K,), (B * N,)."""
        return values.new_zeros(len(self.background)).index_add(0, self.rows, values)

    @property
    def row_mass(self) -> Tensor:
        """What each prediction takes part with: 1 in balanced plans, 0 where it is ignored, (B * N,)."""
        return self.background.index_add(0, self.rows, self.weight)

    @property
    def mass(self) -> Tensor:
        """Predictions' worth of mass that is matched, of each image, (B,)."""
        return self.sum_by_image(self.weight)


class _SumByImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, images: Tensor, num_images: int) -> Tensor:
        ctx.save_for_backward(images)
        if SUM_GROUPS.takes(values=values, groups=images):
            sums = values.new_empty(num_images)
            SUM_GROUPS(values=values, groups=images, sums=sums)
            return sums
        return values.new_zeros(num_images).index_add(0, images, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (images,) = ctx.saved_tensors
        return grad.index_select(0, images), None, None


def expand(plan: Tensor, min_weight: float = MIN_WEIGHT, few: bool = True) -> Pairs:
    """List the pairs of a plan.

    Args:
        plan: (B, N, M + 1), last column the background.
        min_weight: Pairs lighter than this are left out; 0 keeps all that are not 0.
        few: Whether pairs that weigh nothing must not be listed. If not, on a GPU all pairs of a plan of up to
            :data:`ALL_PAIRS` are: finding the few would make the host wait.

    Returns:
        Pairs.

    Raises:
        TypeError: If ``plan`` is no tensor, or ``min_weight`` no number.
        ValueError: If ``plan`` has another shape, or ``min_weight`` is not in [0, 1).
    """
    min_weight = check_min_weight(min_weight)
    if not isinstance(plan, Tensor):
        raise TypeError(f'plan must be a tensor (B, N, M + 1), got {type(plan).__name__}')
    if plan.dim() != 3 or plan.size(2) == 0:
        raise ValueError(
            f'plan must have shape (B, N, M + 1), the background in its last column, got {tuple(plan.shape)}'
        )
    num_images, num_preds, columns = plan.shape
    if EXPAND.takes(plan=plan) and not plan.requires_grad:
        given = dict(plan=plan, min_weight=min_weight)
        given['counts'] = torch.empty(torch.get_num_threads(), dtype=torch.long)
        names = 'rows', 'gts', 'images', 'weights', 'background'
        EXPAND(**given, fill=0, **dict.fromkeys(names))
        count = int(given['counts'].sum())
        rows, gts, images = (torch.empty(count, dtype=torch.long) for _ in range(3))
        filled = rows, gts, images, plan.new_empty(count), plan.new_empty(num_images * num_preds)
        EXPAND(**given, fill=1, **dict(zip(names, filled)))
        return Pairs(*filled, num_images)
    kept = plan >= min_weight if min_weight else plan > 0
    kept[:, :, -1] = False
    if not few and not host_may_wait(plan) and plan.numel() <= ALL_PAIRS:
        background = plan[:, :, -1]
        plan = torch.cat([torch.where(kept, plan, 0)[:, :, :-1], background[:, :, None]], dim=2)
        index = torch.arange(num_images * num_preds * (columns - 1), device=plan.device)
        index = index + index // max(columns - 1, 1)
    else:
        index = _nonzero(kept.flatten())
    rows, gts = index // columns, index % columns
    images = rows // max(num_preds, 1)
    weight, background = plan.flatten()[index], plan[:, :, -1].flatten()
    return Pairs(
        rows=rows,
        gts=images * (columns - 1) + gts,
        images=images,
        weight=weight,
        background=background,
        num_images=num_images,
    )


def _nonzero(mask: Tensor) -> Tensor:
    """Places of a flat mask; on a processor by numpy, which finds them four times faster."""
    return mask.nonzero()[:, 0] if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def check_min_weight(min_weight: float) -> float:
    """Return ``min_weight`` as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not in [0, 1).
    """
    min_weight = number('min_weight', min_weight)
    if not 0 <= min_weight < 1:
        raise ValueError(
            f'min_weight must be in [0, 1), got {min_weight:g}: it is the weight below which a pair of prediction and '
            'ground truth is dropped, and a whole prediction weighs 1.'
        )
    return min_weight


def lists_any_pairs(loss_cls: nn.Module) -> bool:
    """Whether :func:`classification_losses` copies no row of scores for each pair, so that many do no harm."""
    return (
        isinstance(loss_cls, (QualityFocalLoss, VarifocalLoss))
        or _is_plain_softmax(loss_cls)
        or _sums_over_classes(loss_cls)
    )


def classification_losses(
    loss_cls: nn.Module,
    scores: Tensor,
    labels: Tensor,
    background_label: int,
    pairs: Pairs,
    quality: Callable[[], Tensor],
    num_negatives: Optional[Tensor] = None,
) -> Tensor:
    """Classification loss of each prediction under a plan.

    A loss of qualities (QualityFocalLoss, VarifocalLoss) gets one soft target for each class, the plan's mean of the
    qualities, and the prediction's mass as weight. Any other gets the pairs' labels and the background label with the
    plan's weights.

    Args:
        loss_cls: Any classification loss of mmdet's contract.
        scores: (B * N, C).
        labels: Class of each pair's ground truth, a column of ``scores``, (K,).
        background_label: Label of the background, a column of ``scores`` or C.
        pairs: The plan.
        quality: Gives the quality (IoU) of each pair, (K,).
        num_negatives: Hard negative mining: how many predictions of each image, those of the largest weighted
            background loss, keep that loss, (B,). Not for losses of qualities. None: all do.

    Returns:
        (B * N,), ``loss_weight`` of the loss included.
    """
    if num_negatives is None and in_blocks(scores) and _is_plain_focal(loss_cls):
        return _focal_losses(loss_cls, scores, labels, pairs, quality)
    if isinstance(loss_cls, (QualityFocalLoss, VarifocalLoss)):
        mass = pairs.row_mass
        share = pairs.weight / mass[pairs.rows]
        target = torch.zeros_like(scores).index_put_(
            (pairs.rows, labels), (quality() * share).to(scores.dtype), accumulate=True
        )
        weight = mass[:, None] if isinstance(loss_cls, VarifocalLoss) else mass
        return sum_by_row(loss_cls(scores, target.clamp_(max=1), weight, reduction_override='none'))
    if _is_plain_softmax(loss_cls):
        return _softmax_losses(loss_cls, scores, labels, background_label, pairs, num_negatives)
    background = labels.new_full(scores.shape[:1], background_label)
    if _sums_over_classes(loss_cls) and num_negatives is None:
        losses = sum_by_row(loss_cls(scores, background, pairs.row_mass, reduction_override='none'))
        score, own = scores.flatten()[pairs.rows * scores.size(1) + labels][:, None], torch.zeros_like(labels)
        matched, instead = (
            sum_by_row(loss_cls(score, label, pairs.weight, reduction_override='none')) for label in (own, own + 1)
        )
        return losses.index_add(0, pairs.rows, (matched - instead).to(losses.dtype))
    losses = sum_by_row(loss_cls(scores, background, pairs.background, reduction_override='none'))
    if num_negatives is not None:
        losses = losses * _hardest(losses.detach(), num_negatives)
    matched = sum_by_row(loss_cls(scores[pairs.rows], labels, pairs.weight, reduction_override='none'))
    return losses.index_add(0, pairs.rows, matched.to(losses.dtype))


def _is_plain_focal(loss_cls: nn.Module) -> bool:
    """Whether the loss is one of mmdet's or our focal losses on logits, whose background :func:`focal_sum` computes."""
    known = (FocalLoss, QualityFocalLoss, VarifocalLoss, OurQualityFocalLoss, OurVarifocalLoss)
    return type(loss_cls) in known and loss_cls.use_sigmoid and not getattr(loss_cls, 'activated', False)


def _focal_losses(
    loss_cls: nn.Module, scores: Tensor, labels: Tensor, pairs: Pairs, quality: Callable[[], Tensor]
) -> Tensor:
    """:func:`classification_losses` of a focal loss."""
    mass = pairs.row_mass
    index, entry = torch.unique(pairs.rows * scores.size(1) + labels, return_inverse=True)
    weight = pairs.weight.new_zeros(len(index)).index_add(0, entry, pairs.weight)
    rows = index.div(scores.size(1), rounding_mode='floor')
    if isinstance(loss_cls, FocalLoss):
        alpha, gamma = loss_cls.alpha, loss_cls.gamma
        rest = (1 - alpha) * (mass[rows] - weight)

        def entry_losses(x: Tensor) -> Tensor:
            prob = x.sigmoid()
            return alpha * weight * (1 - prob).pow(gamma) * softplus(-x) + rest * prob.pow(gamma) * softplus(x)

        losses = focal_sum(scores, gamma, 1 - alpha, mass, index, entry_losses)
    else:
        target = weight.new_zeros(len(index)).index_add(0, entry, (pairs.weight * quality()).to(weight.dtype))
        target = (target / mass[rows]).clamp(max=1).to(scores.dtype)
        index, target = index[target > 0], target[target > 0]
        if isinstance(loss_cls, QualityFocalLoss):
            losses = quality_focal_rows(scores, index, target, mass, loss_cls.beta)
        else:
            options = loss_cls.alpha, loss_cls.gamma, loss_cls.iou_weighted
            losses = varifocal_rows(scores, index, target, mass, *options)
    if type(loss_cls).__module__.startswith('uotod_mmdet'):
        losses = checked(type(loss_cls).__name__, losses, scores, mass, None, [])
    return loss_cls.loss_weight * losses


def _is_plain_softmax(loss_cls: nn.Module) -> bool:
    """Whether the loss is softmax cross-entropy, which needs the logarithms of each prediction only once."""
    return (
        type(loss_cls) is CrossEntropyLoss
        and not (loss_cls.use_sigmoid or loss_cls.use_mask or loss_cls.avg_non_ignore)
        and loss_cls.ignore_index is None
    )


def _softmax_losses(
    loss_cls: CrossEntropyLoss,
    scores: Tensor,
    labels: Tensor,
    background_label: int,
    pairs: Pairs,
    num_negatives: Optional[Tensor],
) -> Tensor:
    """:func:`classification_losses` of a softmax cross-entropy."""
    rows, columns = scores.shape
    background, weights = pairs.background, pairs.weight
    fits = SOFTMAX_LOSSES.takes(scores=scores, background=background, rows=pairs.rows, labels=labels, weights=weights)
    if num_negatives is None and fits and not (weights.requires_grad or background.requires_grad):
        if loss_cls.class_weight is not None:
            class_weight = to_device_of(scores, loss_cls.class_weight)
            background = background * class_weight[background_label]
            weights = weights * class_weight.index_select(0, labels)
        masses = background, pairs.rows, labels, weights
        return loss_cls.loss_weight * _CompiledSoftmaxLosses.apply(scores, background_label, *masses)
    entries = torch.arange(rows, device=scores.device) * columns + background_label
    entries = torch.cat([entries, pairs.rows * columns + labels])
    weight = -loss_cls.loss_weight * torch.cat([pairs.background, pairs.weight])
    if loss_cls.class_weight is not None:
        weight = weight * to_device_of(scores, loss_cls.class_weight)[entries % columns]
    values = weight * scores.log_softmax(1).flatten().index_select(0, entries)
    losses, matched = values[:rows], values[rows:]
    if num_negatives is not None:
        losses = losses * _hardest(losses.detach(), num_negatives)
    return losses.index_add(0, pairs.rows, matched)


class _CompiledSoftmaxLosses(torch.autograd.Function):
    """Softmax cross-entropy of each row (N, C) with the background and its pairs' labels by csrc/losses.cpp."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        background_label: int,
        background: Tensor,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        ctx.label = background_label
        losses, log_sums = torch.empty_like(background), scores.new_empty(len(scores), 2)
        given = dict(scores=scores, background=background, rows=rows, labels=labels, weights=weights)
        SOFTMAX_LOSSES(**given, label=background_label, losses=losses, log_sums=log_sums)
        ctx.save_for_backward(scores, background, rows, labels, weights, log_sums)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scores, background, rows, labels, weights, log_sums = ctx.saved_tensors
        gradient = torch.empty_like(scores)
        given = dict(scores=scores, background=background, rows=rows, labels=labels, weights=weights)
        SOFTMAX_GRADIENT(**given, label=ctx.label, log_sums=log_sums, grad=grad.resolve_neg(), gradient=gradient)
        return gradient, None, None, None, None, None


def _sums_over_classes(loss_cls: nn.Module) -> bool:
    """Whether the loss is a sum of a term for each class that depends on that class's score alone.

    Then a pair differs from the background in one term: no row of scores is computed more than once.
    """
    if type(loss_cls) is FocalLoss:
        return loss_cls.use_sigmoid
    return type(loss_cls) is CrossEntropyLoss and loss_cls.use_sigmoid and loss_cls.class_weight is None


def pair_losses(loss: nn.Module, pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Localisation loss of each pair.

    Args:
        loss: Any box loss of mmdet's contract.
        pred: Predicted boxes (or deltas) of the pairs, (K, 4).
        target: Their ground truths in the same form, (K, 4).
        weight: (K,).

    Returns:
        (K,), ``loss_weight`` of the loss included.
    """
    if not len(pred):  # some losses of mmdet give a scalar then
        return (pred + target).sum(1) * 0
    if type(loss) is GIoULoss and not target.requires_grad:
        return loss.loss_weight * weight * giou_losses(pred, target, loss.eps)
    if type(loss) in (L1Loss, SmoothL1Loss):  # one weight for the four coordinates
        return weight * sum_by_row(loss(pred, target, reduction_override='none'))
    return sum_by_row(loss(pred, target, weight[:, None].expand_as(pred), reduction_override='none'))


def _hardest(losses: Tensor, count: Tensor) -> Tensor:
    """True on the ``count`` (B,) largest losses of each image, (B * N,)."""
    losses = losses.view(len(count), len(losses) // max(len(count), 1))
    order = losses.argsort(1, descending=True)
    first = torch.arange(losses.size(1), device=losses.device) < count[:, None]
    return torch.zeros_like(first).scatter(1, order, first).flatten()


def plan_statistics(
    pairs: Pairs, gt_mask: Tensor, num_iter: Optional[Tensor], assigner: Any = None
) -> dict[str, Tensor]:
    """What to watch of a plan during training; no name contains 'loss', so mmengine logs and does not sum it.

    Args:
        pairs: The plan.
        gt_mask: False on padding, (B, M).
        num_iter: Iterations of the solver, (B,); None: the strategy does not iterate.
        assigner: Who made the plan; if that is so soft that everything is taught to everyone, a warning says so once.

    Returns:
        ``matched_mass``: predictions' worth of mass on ground truths, mean of the images; ``unmatched_gts``: share of
        ground truths that hold less than 0.5; ``plan_entropy``: mean entropy, in nats, of the rows of predictions that
        give more to ground truths than to the background; ``sinkhorn_iters``: mean iterations, where there are any.
    """
    images, gts = max(pairs.num_images, 1), gt_mask.sum().clamp(min=1)
    if assigner is not None:
        _warn_if_too_soft(pairs, gts, assigner)
    given = dict(rows=pairs.rows, gts=pairs.gts, weights=pairs.weight, background=pairs.background)
    given['gt_mask'] = gt_mask.flatten()
    if STATISTICS.takes(**given):
        values = torch.empty(4, dtype=torch.float64)
        STATISTICS(**given, values=values)
        mass, unmatched, entropy, matched = values.to(pairs.weight.dtype)
        return _named_statistics(mass / images, unmatched / gts, entropy / matched.clamp(min=1), num_iter)
    gt_mass = pairs.weight.new_zeros(gt_mask.numel()).index_add(0, pairs.gts, pairs.weight)
    unmatched = (gt_mass < 0.5) & gt_mask.flatten()
    row_mass = pairs.row_mass
    matched = row_mass > 2 * pairs.background
    entropy = pairs.sum_by_row(_entropy(pairs.weight / row_mass[pairs.rows]))
    entropy = entropy + _entropy(pairs.background / torch.where(row_mass > 0, row_mass, 1))
    entropy = torch.where(matched, entropy, 0).sum() / matched.sum().clamp(min=1)
    return _named_statistics(pairs.weight.sum() / images, unmatched.sum() / gts, entropy, num_iter)


EVERYONE, EVERYONE_ALIKE = 0.5, 0.99
"""Shares of all pairs of predictions and ground truths that must carry a plan for it to be called too soft.

At reg=50 our configs have 0.65 to 1, at reg=0.05 dense heads and DINO have 0.0 to 0.22. The second is for plans that
give a ground truth one prediction's worth: the queries of an untrained DETR predict the same, and reg=0.05 gives 0.94.
"""

_LOOK_EVERY = 50
"""Batches from one look at the softness of an assigner's plans to the next; the first few are looked at, too."""

_batches: WeakKeyDictionary = WeakKeyDictionary()  # how many each assigner has matched; infinite once it was warned of


def _warn_if_too_soft(pairs: Pairs, gts: Tensor, assigner: Any) -> None:
    """Log, once for an assigner, that its plan teaches everything to everyone.

    The pairs that carry a plan are counted by their participation ratio, (sum P)^2 / sum P^2: K for K equal weights.
    """
    number = _batches.get(assigner, 0)
    _batches[assigner] = number + 1
    if number > 2 and (number == math.inf or number % _LOOK_EVERY):
        return
    weight = pairs.weight.detach()
    mass, square = weight.sum(), torch.dot(weight, weight)
    carrying = mass.square() / square.clamp(min=torch.finfo(weight.dtype).tiny)
    num_preds = len(pairs.background) // max(pairs.num_images, 1)
    soft = square < 0.5 * mass  # a hard plan of few predictions is not

    def warn() -> None:
        if _batches.get(assigner) == math.inf:
            return
        _batches[assigner] = math.inf
        numbers = ', '.join(f'{n}={getattr(assigner, n)}' for n in ('reg', 'reg_dimless') if hasattr(assigner, n))
        print_log(
            f'{type(assigner).__name__}: the plan is so soft that it teaches everything to everyone: each ground truth '
            f'is shared by about {float(carrying / gts):.0f} of {num_preds} predictions, which give it '
            f"{float(square / mass):.2g} of themselves on average, and together {float(mass / gts):.3g} predictions' "
            f'worth. Lower reg{f" (now {numbers})" if numbers else ""} until it is small beside the differences of the '
            'match costs, 0.01 to 0.1 for costs of about 1, and watch matched_mass and plan_entropy in the log.',
            logger='current',
            level=logging.WARNING,
        )

    share = torch.where(mass > 2 * gts, EVERYONE, EVERYONE_ALIKE)
    act_if(soft & (carrying > share * num_preds * gts), warn)


def _named_statistics(
    matched_mass: Tensor, unmatched_gts: Tensor, plan_entropy: Tensor, num_iter: Optional[Tensor]
) -> dict[str, Tensor]:
    statistics = dict(matched_mass=matched_mass, unmatched_gts=unmatched_gts, plan_entropy=plan_entropy)
    if num_iter is not None:
        statistics['sinkhorn_iters'] = num_iter.to(matched_mass.dtype).mean()
    return statistics


def _entropy(probability: Tensor) -> Tensor:
    return -probability * probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
