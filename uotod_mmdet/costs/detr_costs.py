"""Class costs of DETR's successors, in which the score of a class counts as far as the box fits."""

from typing import Optional

import torch
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import pairwise_overlaps
from uotod_mmdet.registry import TASK_UTILS

from .batch import Batch
from .dynamic_costs import NEEDS, ScoreCost, TaskAlignmentCost


@TASK_UTILS.register_module()
class PositionModulatedCost(ScoreCost):
    """Focal cost of p u^beta in place of the probability p; u = (GIoU + 1) / 2.

    Stable-DINO, https://arxiv.org/abs/2304.04742, section 3.3.

    Args:
        weight: Factor of the cost.
        beta: Exponent of u, >= 0; with 0 the cost is mmdet's FocalLossCost.
        alpha: Factor of positives in the focal loss, in [0, 1].
        gamma: Exponent of the modulating factor, >= 0.
        eps: Added to probabilities before the logarithm.
        rescale: Whether u is divided by the largest of the image.
    """

    needs = NEEDS

    def __init__(
        self,
        weight: float = 1.0,
        beta: float = 0.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        eps: float = 1e-12,
        rescale: bool = True,
    ) -> None:
        super().__init__(number('weight', weight))
        self.beta, self.gamma = number('beta', beta, at_least=0), number('gamma', gamma, at_least=0)
        self.alpha, self.eps = number('alpha', alpha, at_least=0), number('eps', eps, above=0)
        if self.alpha > 1:
            raise ValueError(f'alpha must be in [0, 1], got {alpha}')
        self.rescale = switch('rescale', rescale)

    def batched(self, batch: Batch) -> Tensor:
        """Cost of a batch, (B, N, M), one image at a time; pairs that take no part do not count in the largest u."""
        assert batch.scores is not None and batch.bboxes is not None and batch.gt_bboxes is not None  # NEEDS
        total = torch.empty(batch.shape, dtype=batch.dtype, device=batch.device)
        for index, image in enumerate(zip(batch.scores, batch.bboxes, batch.gt_labels, batch.gt_bboxes)):
            real = batch.gt_mask[index].expand_as(total[index])
            if batch.pred_mask is not None:
                real = real & batch.pred_mask[index][:, None]
            total[index] = self.cost(*image, real=real)
        return total

    def cost(
        self, scores: Tensor, bboxes: Tensor, labels: Tensor, gt_bboxes: Tensor, real: Optional[Tensor] = None
    ) -> Tensor:
        """Cost of one image, (N, M); see :class:`ScoreCost`. ``real`` (N, M): which pairs take part; None: all do."""
        fit = pairwise_overlaps(bboxes, gt_bboxes, 'giou').add_(1).div_(2).clamp_(0, 1)
        if self.rescale and fit.numel():
            largest = (fit if real is None else torch.where(real, fit, 0)).amax()
            fit = fit.div_(torch.where(largest > 0, largest, 1)).clamp_(max=1)
        prob = scores.index_select(1, labels).sigmoid_().mul_(fit.pow_(self.beta))
        negative = -(1 - prob + self.eps).log() * (1 - self.alpha) * prob.pow(self.gamma)
        positive = -(prob + self.eps).log() * self.alpha * (1 - prob).pow(self.gamma)
        return positive.sub_(negative).mul_(self.weight)


@TASK_UTILS.register_module()
class HighOrderCost(TaskAlignmentCost):
    """-p u^beta of probability p and IoU u, all that Rank-DETR's matching minimises.

    Rank-DETR, https://arxiv.org/abs/2310.08854, section 3.3.

    Args:
        weight: Factor of the cost.
        beta: Exponent of the IoU, >= 0.
    """

    needs, batched = NEEDS, ScoreCost.of_batch

    def __init__(self, weight: float = 1.0, beta: float = 4.0) -> None:
        super().__init__(weight, alpha=1.0, beta=beta, log=False)
