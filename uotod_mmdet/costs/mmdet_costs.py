"""How mmdet's match costs are computed for a batch."""

from collections.abc import Callable
from typing import Optional, Union

import torch
from mmdet.models.task_modules.assigners.match_cost import (
    BBoxL1Cost,
    BinaryFocalLossCost,
    ClassificationCost,
    CrossEntropyLossCost,
    DiceCost,
    FocalLossCost,
    IoUCost,
)
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor
from torch.nn.functional import softplus

from uotod_mmdet.ops import CostTerm

from .batch import Batch
from .declared import CostReading, declare_cost
from .tokens import has_token_maps, token_maps

BLOCK = 1 << 24
"""Entries of masks (N, P) that a cost of masks looks at in one go, in whole images; 64 MB in float32."""


def _classification(match_cost: ClassificationCost, batch: Batch) -> CostTerm:
    _check_classes(match_cost, batch)
    return CostTerm('softmax', -match_cost.weight)


def _focal(match_cost: FocalLossCost, batch: Batch) -> Union[CostTerm, Tensor, None]:
    if match_cost.binary_input:  # of masks
        return _mask_focal(match_cost, batch)
    _check_classes(match_cost, batch)
    return CostTerm('focal', match_cost.weight, match_cost.eps, match_cost.alpha, match_cost.gamma)


def _check_classes(match_cost: Union[ClassificationCost, FocalLossCost], batch: Batch) -> None:
    if has_token_maps(batch.gt_instances):
        raise ValueError(
            f'{type(match_cost).__name__} reads the score of a class, but the scores here are of the tokens of a text '
            "(the ground truths have positive_maps): take dict(type='BinaryFocalLossCost')."
        )


def _binary_focal(match_cost: BinaryFocalLossCost, batch: Batch) -> Tensor:
    """Focal loss of all tokens of the text with the ground truth's map as target, (B, N, M)."""
    assert batch.scores is not None  # the cost needs them
    maps, real = token_maps(batch.gt_instances)
    prob = batch.scores[:, :, : maps.size(2)].sigmoid()
    maps, real = maps[:, :, : prob.size(2)].to(prob.dtype), real[:, None, : prob.size(2)]
    negative = -(1 - prob + match_cost.eps).log() * (1 - match_cost.alpha) * prob.pow(match_cost.gamma)
    positive = -(prob + match_cost.eps).log() * match_cost.alpha * (1 - prob).pow(match_cost.gamma)
    # Tokens outside the text have scores of -inf or anything else.
    negative, difference = (torch.where(real, values, 0) for values in (negative, positive - negative))
    return match_cost.weight * (negative.sum(2, keepdim=True) + difference @ maps.transpose(1, 2))


def _box_l1(match_cost: BBoxL1Cost, batch: Batch) -> CostTerm:
    return CostTerm('l1', match_cost.weight, centred=match_cost.box_format == 'xywh')


def _iou(match_cost: IoUCost, batch: Batch) -> Union[CostTerm, Tensor]:
    if match_cost.iou_mode == 'iof':
        return -match_cost.weight * bbox_overlaps(batch.bboxes, batch.gt_bboxes, mode='iof')
    return CostTerm(match_cost.iou_mode, -match_cost.weight)


def _of_masks(batch: Batch, cost: Callable[[Tensor, Tensor], Tensor], weight: float) -> Optional[Tensor]:
    """``weight`` times a cost of masks (b, N, P) and ground truths (b, M, P), of the whole batch, (B, N, M)."""
    if batch.masks is None or batch.gt_masks is None:
        return None
    images, step = len(batch.gt_masks), max(1, BLOCK // max(batch.masks[:1].numel(), 1))
    found = batch.masks.new_empty(batch.shape)
    for layer in range(0, len(batch.masks), images):
        for first in range(0, images, step):
            gts = batch.gt_masks[first : first + step]
            part = slice(layer + first, layer + first + len(gts))
            found[part] = cost(batch.masks[part], gts)
    return found.mul_(weight)


def _mask_cross_entropy(match_cost: CrossEntropyLossCost, batch: Batch) -> Optional[Tensor]:
    if not match_cost.use_sigmoid:
        return None

    def cost(masks: Tensor, gts: Tensor) -> Tensor:
        # -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x: one product of matrices, not two.
        return (softplus(masks).sum(2)[:, :, None] - masks @ gts.mT) / masks.size(2)

    return _of_masks(batch, cost, match_cost.weight)


def _mask_focal(match_cost: FocalLossCost, batch: Batch) -> Optional[Tensor]:
    def cost(masks: Tensor, gts: Tensor) -> Tensor:
        prob, alpha, gamma, eps = masks.sigmoid(), match_cost.alpha, match_cost.gamma, match_cost.eps
        negative = -(1 - prob + eps).log() * (1 - alpha) * prob.pow(gamma)
        positive = -(prob + eps).log() * alpha * (1 - prob).pow(gamma)
        return (negative.sum(2)[:, :, None] + (positive - negative) @ gts.mT) / masks.size(2)

    return _of_masks(batch, cost, match_cost.weight)


def _dice(match_cost: DiceCost, batch: Batch) -> Optional[Tensor]:
    def cost(masks: Tensor, gts: Tensor) -> Tensor:
        prob = masks.sigmoid() if match_cost.pred_act else masks
        overlap = prob @ gts.mT
        if not match_cost.naive_dice:
            prob, gts = prob.square(), gts.square()
        sizes = prob.sum(2)[:, :, None] + gts.sum(2)[:, None]
        return 1 - (2 * overlap + match_cost.eps) / (sizes + match_cost.eps)

    return _of_masks(batch, cost, match_cost.weight)


declare_cost(ClassificationCost, CostReading(('scores',), _classification))
declare_cost(FocalLossCost, CostReading(('scores',), _focal))
declare_cost(BBoxL1Cost, CostReading(('bboxes', 'gt_bboxes'), _box_l1))
declare_cost(BinaryFocalLossCost, CostReading(('scores',), _binary_focal))
declare_cost(IoUCost, CostReading(('bboxes', 'gt_bboxes'), _iou))
declare_cost(CrossEntropyLossCost, CostReading((), _mask_cross_entropy))
declare_cost(DiceCost, CostReading((), _dice))
