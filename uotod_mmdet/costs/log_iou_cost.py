"""The IoU loss as a match cost."""

from typing import Optional

from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import CostTerm, pairwise_overlaps
from uotod_mmdet.registry import TASK_UTILS

from .batch import Batch
from .boxes import float_boxes


@TASK_UTILS.register_module()
class LogIoUCost(BaseMatchCost):
    """-log IoU, the IoU loss of UnitBox that OTA and SimOTA match by.

    The cost depends on ratios of overlaps, mmdet's IoUCost on differences. All anchors overlap a small object little,
    but anchors of the right level overlap the object several times more than anchors of the next level.

    Args:
        weight: Factor of the cost.
        eps: Smallest IoU that differs from 0 in the cost; boxes that do not overlap cost -log(eps).
    """

    def __init__(self, weight: float = 1.0, eps: float = 1e-3) -> None:
        super().__init__(number('weight', weight))
        self.eps = number('eps', eps, above=0)
        if not self.eps < 1:
            raise ValueError(f'eps must be in (0, 1), got {eps}')

    needs = 'bboxes', 'gt_bboxes'

    def batched(self, batch: Batch) -> CostTerm:
        """The cost of a batch."""
        return CostTerm('log_iou', -self.weight, eps=self.eps)

    def cost(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Cost (..., N, M) of boxes (..., N, 4) and ground truths (..., M, 4), pixels."""
        return pairwise_overlaps(bboxes, gt_bboxes).clamp_(min=self.eps).log_().mul_(-self.weight)

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs
    ) -> Tensor:
        """Cost of one image, (N, M)."""
        return self.cost(*float_boxes(pred_instances.bboxes, gt_instances.bboxes))
