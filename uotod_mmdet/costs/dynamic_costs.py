"""What mmdet's dynamic assigners minimise, as match costs: SimOTA, DynamicSoftLabel and TaskAligned.

These assigners take the best few predictions of each ground truth and then settle collisions. As costs, the same terms
suit transport, in which no prediction is taken twice and each ground truth gets its mass.
"""

import math
from typing import Any, Optional

import torch
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import pairwise_overlaps, softplus
from uotod_mmdet.registry import TASK_UTILS

from .batch import Batch
from .boxes import float_boxes
from .prior_costs import NEEDS as PRIOR_NEEDS
from .prior_costs import PriorCost

NEEDS = 'scores', 'bboxes', 'gt_bboxes'


class ScoreCost(BaseMatchCost):
    """Base of the costs of scores and boxes. A subclass implements :meth:`cost`, for one image."""

    def cost(self, scores: Tensor, bboxes: Tensor, labels: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Cost of one image, (N, M).

        Args:
            scores: Logits, (N, C).
            bboxes: Predicted boxes, pixels, (N, 4).
            labels: Classes of the ground truths, (M,).
            gt_bboxes: Ground truths, pixels, (M, 4).
        """
        raise NotImplementedError

    def of_batch(self, batch: Batch) -> Tensor:
        """Cost of a batch, (B, N, M), one image at a time: temporaries are those of an image."""
        assert batch.scores is not None and batch.bboxes is not None and batch.gt_bboxes is not None  # NEEDS
        total = torch.empty(batch.shape, dtype=batch.dtype, device=batch.device)
        for index, image in enumerate(zip(batch.scores, batch.bboxes, batch.gt_labels, batch.gt_bboxes)):
            total[index] = self.cost(*image)
        return total

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs: Any
    ) -> Tensor:
        """Cost of one image, (N, M)."""
        scores, bboxes, gt_bboxes = float_boxes(pred_instances.scores, pred_instances.bboxes, gt_instances.bboxes)
        return self.cost(scores, bboxes, gt_instances.labels, gt_bboxes)


@TASK_UTILS.register_module()
class BinaryCrossEntropyCost(ScoreCost):
    """Binary cross-entropy of all classes against the ground truth's, the class cost of SimOTA (arXiv 2107.08430).

    Args:
        weight: Factor of the cost.
    """

    needs, batched = NEEDS, ScoreCost.of_batch

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(number('weight', weight))

    def cost(self, scores: Tensor, bboxes: Tensor, labels: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Cost of one image, (N, M); see :class:`ScoreCost`."""
        return softplus(scores).sum(1, keepdim=True).sub(scores.index_select(1, labels)).mul_(self.weight)


@TASK_UTILS.register_module()
class SoftLabelCost(ScoreCost):
    """Quality focal loss of all classes, the target of the ground truth's class being the IoU.

    The class cost of RTMDet's DynamicSoftLabelAssigner (arXiv 2212.07784).

    Args:
        weight: Factor of the cost.
        beta: Exponent of the distance between score and target.
    """

    needs, batched = NEEDS, ScoreCost.of_batch

    def __init__(self, weight: float = 1.0, beta: float = 2.0) -> None:
        super().__init__(number('weight', weight))
        self.beta = number('beta', beta, at_least=0)

    def cost(self, scores: Tensor, bboxes: Tensor, labels: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Cost of one image, (N, M); see :class:`ScoreCost`."""
        of_others = softplus(scores).mul_(scores.sigmoid().pow_(self.beta))  # each class as the background's
        overlaps, logits = pairwise_overlaps(bboxes, gt_bboxes), scores.index_select(1, labels)
        cost = softplus(logits).sub_(logits * overlaps)
        cost.mul_(overlaps.sub_(logits.sigmoid_()).abs_().pow_(self.beta))
        cost.add_(of_others.sum(1, keepdim=True)).sub_(of_others.index_select(1, labels))
        return cost.mul_(self.weight)


@TASK_UTILS.register_module()
class TaskAlignmentCost(ScoreCost):
    """Task alignment t = s^alpha u^beta of score s and IoU u, by which TOOD's assigner chooses (arXiv 2108.07755).

    Args:
        weight: Factor of the cost.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.
        log: Whether the cost is -log t, in place of -t. Transport needs it: -t hardly tells predictions of small t,
            which is all of them when training begins, from each other.
        eps: Smallest score and IoU that differ from 0 in -log t.
    """

    needs, batched = NEEDS, ScoreCost.of_batch

    def __init__(
        self, weight: float = 1.0, alpha: float = 1.0, beta: float = 6.0, log: bool = True, eps: float = 1e-3
    ) -> None:
        super().__init__(number('weight', weight))
        self.alpha, self.beta = number('alpha', alpha, at_least=0), number('beta', beta, at_least=0)
        self.log, self.eps = switch('log', log), number('eps', eps, above=0)

    def cost(self, scores: Tensor, bboxes: Tensor, labels: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Cost of one image, (N, M); see :class:`ScoreCost`."""
        overlaps, score = pairwise_overlaps(bboxes, gt_bboxes), scores.index_select(1, labels).sigmoid_()
        if self.log:
            cost = score.clamp_(min=self.eps).log_().mul_(self.alpha)
            return cost.add_(overlaps.clamp_(min=self.eps).log_().mul_(self.beta)).mul_(-self.weight)
        return score.pow_(self.alpha).mul_(overlaps.pow_(self.beta)).mul_(-self.weight)


@TASK_UTILS.register_module()
class SoftCenterCost(PriorCost):
    """10^(distance - radius) of a prior from the ground truth's centre, in strides: the soft centre prior of RTMDet.

    Args:
        weight: Factor of the cost.
        radius: Distance at which the cost is ``weight``.
        limit: Largest cost before ``weight``; mmdet's assigner grows without bounds.
        prior_format: As for :class:`~uotod_mmdet.costs.PriorCenterCost`.
    """

    needs, batched = PRIOR_NEEDS, PriorCost.of_batch

    def __init__(
        self, weight: float = 1.0, radius: float = 3.0, limit: float = 100.0, prior_format: str = 'auto'
    ) -> None:
        super().__init__(weight, prior_format)
        self.radius, self.limit = number('radius', radius, at_least=0), number('limit', limit, above=0)

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'auto') -> Tensor:
        """Cost (..., N, M) of priors (..., N, 4) and ground truths (..., M, 4), pixels."""
        exponent = self.distance(priors, gt_bboxes, prior_format).sub_(self.radius).clamp_(max=math.log10(self.limit))
        return exponent.mul_(math.log(10)).exp_().mul_(self.weight)
