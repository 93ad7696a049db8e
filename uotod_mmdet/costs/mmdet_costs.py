"""How mmdet's match costs are computed for a batch."""

from typing import Union

from mmdet.models.task_modules.assigners.match_cost import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from uotod_mmdet.ops import CostTerm

from .batch import Batch
from .declared import CostReading, declare_cost


def _classification(match_cost: ClassificationCost, batch: Batch) -> CostTerm:
    return CostTerm('softmax', -match_cost.weight)


def _focal(match_cost: FocalLossCost, batch: Batch) -> Union[CostTerm, None]:
    if match_cost.binary_input:  # of masks
        return None
    return CostTerm('focal', match_cost.weight, match_cost.eps, match_cost.alpha, match_cost.gamma)


def _box_l1(match_cost: BBoxL1Cost, batch: Batch) -> CostTerm:
    return CostTerm('l1', match_cost.weight, centred=match_cost.box_format == 'xywh')


def _iou(match_cost: IoUCost, batch: Batch) -> Union[CostTerm, Tensor]:
    if match_cost.iou_mode == 'iof':
        return -match_cost.weight * bbox_overlaps(batch.bboxes, batch.gt_bboxes, mode='iof')
    return CostTerm(match_cost.iou_mode, -match_cost.weight)


declare_cost(ClassificationCost, CostReading(('scores',), _classification))
declare_cost(FocalLossCost, CostReading(('scores',), _focal))
declare_cost(BBoxL1Cost, CostReading(('bboxes', 'gt_bboxes'), _box_l1))
declare_cost(IoUCost, CostReading(('bboxes', 'gt_bboxes'), _iou))
