"""How mmdet's match costs are computed for a batch."""

from typing import Union

import torch
from mmdet.models.task_modules.assigners.match_cost import (
    BBoxL1Cost,
    BinaryFocalLossCost,
    ClassificationCost,
    FocalLossCost,
    IoUCost,
)
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from uotod_mmdet.ops import CostTerm

from .batch import Batch
from .declared import CostReading, declare_cost
from .tokens import has_token_maps, token_maps


def _classification(match_cost: ClassificationCost, batch: Batch) -> CostTerm:
    _check_classes(match_cost, batch)
    return CostTerm('softmax', -match_cost.weight)


def _focal(match_cost: FocalLossCost, batch: Batch) -> Union[CostTerm, None]:
    if match_cost.binary_input:  # of masks
        return None
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


declare_cost(ClassificationCost, CostReading(('scores',), _classification))
declare_cost(FocalLossCost, CostReading(('scores',), _focal))
declare_cost(BBoxL1Cost, CostReading(('bboxes', 'gt_bboxes'), _box_l1))
declare_cost(BinaryFocalLossCost, CostReading(('scores',), _binary_focal))
declare_cost(IoUCost, CostReading(('bboxes', 'gt_bboxes'), _iou))
