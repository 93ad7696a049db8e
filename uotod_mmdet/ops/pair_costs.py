"""Costs of all pairs of predictions and ground truths of a batch, several terms at once, as an op."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

from . import deferred
from .native import Kernel
from .overlaps import pairwise_overlaps
from .registration import Op

KINDS = ('given', 'iou', 'giou', 'log_iou', 'l1', 'softmax', 'focal')  # enum Kind of csrc/pair_costs.cpp

KERNEL = Kernel(
    'uotod_pair_costs',
    'terms: f64[T 6], T, boxes: f32[B N 4]?, gt_boxes: f32[B M 4]?, scores: f32[B N C]?, C, labels: i64[B M]?, '
    'sizes: f32[B 4]?, given: f32[B N M]?, gt_mask: bool[B M], pred_mask: bool[B N]?, background: float, B, N, M, '
    'K, cost: f32[B N K]',
)


class CostTerm(NamedTuple):
    """A term that the op computes: ``weight`` times what ``kind`` says, of each pair.

    - 'given': the given costs, (B, N, M).
    - 'iou', 'giou': the overlap of the boxes; 'log_iou': log max(IoU, eps).
    - 'l1': distance of the boxes in units of the image, (x1, y1, x2, y2), or (cx, cy, w, h) where ``centred``.
    - 'softmax': probability of the ground truth's class.
    - 'focal': mmdet's FocalLossCost of the ground truth's class.
    """

    kind: str
    weight: float
    eps: float = 0.0
    alpha: float = 0.0
    gamma: float = 0.0
    centred: float = 0.0


class PairInputs(NamedTuple):
    """Inputs of the terms; an input that no term needs may be None."""

    boxes: Optional[Tensor]  # (B, N, 4) xyxy
    gt_boxes: Optional[Tensor]  # (B, M, 4) xyxy
    scores: Optional[Tensor]  # (B, N, C) logits
    labels: Optional[Tensor]  # (B, M) int64, classes
    sizes: Optional[Tensor]  # (B, 4) what 'l1' divides coordinates by
    given: Optional[Tensor]  # (B, N, M)


def pair_costs(
    terms: Sequence[CostTerm],
    inputs: PairInputs,
    gt_mask: Tensor,
    pred_mask: Optional[Tensor],
    like: Tensor,
    background_cost: float,
) -> tuple[Tensor, Tensor]:
    """Sum the terms.

    Args:
        terms: What to sum.
        inputs: What the terms compare, in the dtype of ``like``.
        gt_mask: False on ground truths that take no part, (B, M).
        pred_mask: False on predictions that take no part, (B, N). None: all do.
        like: A tensor of the wanted dtype and device, whose first sizes are B and N.
        background_cost: The last column.

    Returns:
        Costs (B, N, M + 1), 0 on pairs that take no part, ``background_cost`` in the last column, and whether all are
        finite, bool, ().
    """
    if deferred.is_transformed():
        return _reference(terms, inputs, gt_mask, pred_mask, like, background_cost)
    kinds = [KINDS.index(term.kind) for term in terms]
    numbers = [float(number) for term in terms for number in term[1:]]
    return pair_costs_op(kinds, numbers, *inputs, gt_mask, pred_mask, like, float(background_cost))


@Op
def pair_costs_op(
    kinds: Sequence[int],
    numbers: Sequence[float],
    boxes: Optional[Tensor],
    gt_boxes: Optional[Tensor],
    scores: Optional[Tensor],
    labels: Optional[Tensor],
    sizes: Optional[Tensor],
    given: Optional[Tensor],
    gt_mask: Tensor,
    pred_mask: Optional[Tensor],
    like: Tensor,
    background_cost: float,
) -> tuple[Tensor, Tensor]:
    """:func:`pair_costs`; ``numbers`` holds weight, eps, alpha, gamma and centred of each term."""
    inputs = PairInputs(boxes, gt_boxes, scores, labels, sizes, given)
    whole = like.new_empty(*like.shape[:2], gt_mask.size(1) + 1)
    terms = [(kind, *numbers[5 * place : 5 * place + 5]) for place, kind in enumerate(kinds)]
    arguments = dict(inputs._asdict(), gt_mask=gt_mask, pred_mask=pred_mask, cost=whole)
    run = KERNEL.bind(**arguments)
    if run is not None:
        table = torch.tensor(terms, dtype=torch.float64).view(-1, 6)
        return whole, torch.tensor(run(terms=table, background=background_cost) == 0)
    summands = [CostTerm(KINDS[int(kind)], *rest) for kind, *rest in terms]
    return _reference(summands, inputs, gt_mask, pred_mask, like, background_cost)


def _reference(
    terms: Sequence[CostTerm],
    inputs: PairInputs,
    gt_mask: Tensor,
    pred_mask: Optional[Tensor],
    like: Tensor,
    background_cost: float,
) -> tuple[Tensor, Tensor]:
    total = like.new_zeros(*like.shape[:2], gt_mask.size(1))
    for term in terms:
        total = total + _term(term, inputs)
    real = gt_mask[:, None] if pred_mask is None else gt_mask[:, None] & pred_mask[:, :, None]
    cost = torch.where(real, total, 0)
    background = like.new_full((*like.shape[:2], 1), background_cost)
    return torch.cat([cost, background], 2), cost.sum().isfinite()


def _outputs_like(
    kinds: Sequence[int],
    numbers: Sequence[float],
    boxes: Optional[Tensor],
    gt_boxes: Optional[Tensor],
    scores: Optional[Tensor],
    labels: Optional[Tensor],
    sizes: Optional[Tensor],
    given: Optional[Tensor],
    gt_mask: Tensor,
    pred_mask: Optional[Tensor],
    like: Tensor,
    background_cost: float,
) -> tuple[Tensor, Tensor]:
    cost = like.new_empty(*like.shape[:2], gt_mask.size(1) + 1)
    return cost, like.new_empty((), dtype=torch.bool)


pair_costs_op.register_fake(_outputs_like)


def _term(term: CostTerm, inputs: PairInputs) -> Tensor:
    """One term in torch, (B, N, M), any values on pairs that take no part."""
    boxes, gt_boxes, scores, labels, sizes, given = inputs
    if term.kind == 'given':
        assert given is not None
        return term.weight * given
    if term.kind in ('softmax', 'focal'):
        assert scores is not None and labels is not None
        return _class_term(term, scores, labels)
    assert boxes is not None and gt_boxes is not None
    if term.kind in ('iou', 'giou'):
        return pairwise_overlaps(boxes, gt_boxes, term.kind).mul_(term.weight)
    if term.kind == 'log_iou':
        return pairwise_overlaps(boxes, gt_boxes).clamp_(min=term.eps).log_().mul_(term.weight)
    assert sizes is not None
    return _l1(boxes, gt_boxes, sizes[:, None], bool(term.centred)).mul_(term.weight)


def _class_term(term: CostTerm, scores: Tensor, labels: Tensor) -> Tensor:
    if term.kind == 'softmax':
        return _of_gt_class(scores.softmax(2), labels).mul_(term.weight)
    prob = _of_gt_class(scores, labels).sigmoid()
    negative = -(1 - prob + term.eps).log() * (1 - term.alpha) * prob.pow(term.gamma)
    positive = -(prob + term.eps).log() * term.alpha * (1 - prob).pow(term.gamma)
    return term.weight * (positive - negative)


def _l1(boxes: Tensor, gt_boxes: Tensor, sizes: Tensor, centred: bool) -> Tensor:
    """Sum of the distances of four coordinates in units of ``sizes`` (B, 1, 4), (B, N, M)."""
    if centred:
        boxes, gt_boxes = bbox_xyxy_to_cxcywh(boxes), bbox_xyxy_to_cxcywh(gt_boxes)
    total = boxes.new_zeros(())  # one coordinate at a time: torch.cdist(p=1) is slow on GPUs
    for own, gt in zip((boxes / sizes).unbind(-1), (gt_boxes / sizes).unbind(-1)):
        total = (own[:, :, None] - gt[:, None, :]).abs_().add_(total)
    return total


def _of_gt_class(values: Tensor, labels: Tensor) -> Tensor:
    """From (B, N, C) the column of each ground truth's class, (B, N, M)."""
    return values.gather(2, labels[:, None].expand(-1, values.size(1), -1))


def mask_pairs(cost: Tensor, gt_mask: Tensor, pred_mask: Optional[Tensor]) -> Tensor:
    """Cost (B, N, M) with 0 where ``gt_mask`` (B, M) or ``pred_mask`` (B, N) is False, even for NaN."""
    if deferred.host_may_wait(cost) and gt_mask.all() and (pred_mask is None or pred_mask.all()):
        return cost  # a look at the masks is cheaper than a pass over the cost; on a GPU the host would wait
    real = gt_mask[:, None] if pred_mask is None else gt_mask[:, None] & pred_mask[:, :, None]
    return torch.where(real, cost, 0)
