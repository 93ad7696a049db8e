"""Optimal Transport Assignment for dense heads."""

from typing import Any, Union

import torch
from mmdet.models.task_modules.assigners.match_cost import BinaryFocalLossCost, FocalLossCost
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.costs import Batch, as_logits, costs_and_background, has_token_maps
from uotod_mmdet.registry import TASK_UTILS

from .sinkhorn import BalancedSinkhornAssigner


@TASK_UTILS.register_module()
class OTAAssigner(BalancedSinkhornAssigner):
    """OTA (Ge et al., CVPR 2021): balanced transport whose ground truths supply as many predictions as fit them.

    A ground truth supplies the sum of its ``topq`` largest IoUs, at least 1, and the background the rest; each
    prediction demands 1. The cost is the focal classification loss plus ``iou_weight`` times the IoU loss plus a large
    constant outside the centre region. The paper's background cost, the focal loss of all classes at 0, is part of
    each ground truth's cost too and drops out of the plan, as every cost that is constant along a row does: what is
    left is FocalLossCost against a background of 0.

    Where the ground truths are tokens of a text (GroundingDINOHead) the classification term is BinaryFocalLossCost.
    With a head that gives priors only (GFLHead, ATSSHead, RetinaHead...) the boxes are the priors and the
    classification term is left out; with one that gives no priors (DETRHead...) the centre term is. Our heads say what
    their scores are. mmdet's heads do not: scores that all lie in [0, 1] are read as probabilities (YOLOXHead
    gives these), others as logits.

    Args:
        cls_weight: Weight of the classification cost.
        iou_weight: Weight of the IoU cost, -log IoU.
        center_radius: Half the side of the centre region, in strides of point priors or sizes of anchors.
        center_cost: The constant outside the centre region.
        topq: Number of the largest IoUs that are summed.
        reg: Weight of the entropy, in units of the cost (``normalize_cost`` is False here by default).
        num_iter: Largest number of Sinkhorn iterations.
        **kwargs: See :class:`BalancedSinkhornAssigner`.
    """

    newton_after = None  # the paper's iterations stop before a ground truth takes predictions outside its region

    def __init__(
        self,
        cls_weight: float = 1.0,
        iou_weight: float = 1.5,
        center_radius: float = 2.5,
        center_cost: float = 100.0,
        topq: int = 20,
        reg: float = 0.1,
        num_iter: int = 50,
        tol: float = 0.05,
        gt_mass: Union[float, str] = 'dynamic_k',
        normalize_cost: bool = False,
        **kwargs: Any,
    ) -> None:
        weights = dict(cls_weight=cls_weight, iou_weight=iou_weight, center_cost=center_cost)
        cls_weight, iou_weight, center_cost = (number(name, value, at_least=0) for name, value in weights.items())
        super().__init__(
            match_costs=[
                dict(type='uotod_mmdet.LogIoUCost', weight=iou_weight),
                dict(type='uotod_mmdet.InsideGTCost', weight=center_cost, center_radius=center_radius),
                dict(type='FocalLossCost', weight=cls_weight),
            ],
            topq=topq,
            reg=reg,
            num_iter=num_iter,
            tol=tol,
            gt_mass=gt_mass,
            normalize_cost=normalize_cost,
            **kwargs,
        )

    def _cost(self, batch: Batch) -> Tensor:
        overlap, center, classification = self.match_costs
        terms = [overlap]
        if batch.priors is not None:
            terms.append(center)
        if batch.scores is not None:
            terms.append(_of_tokens(classification) if has_token_maps(batch.gt_instances) else classification)
            if batch.score_format == 'auto':
                probabilities = ((batch.scores >= 0) & (batch.scores <= 1)).all()
                batch = batch._replace(scores=torch.where(probabilities, as_logits(batch.scores), batch.scores))
        return costs_and_background(terms, batch, self.background_cost)


def _of_tokens(cost: FocalLossCost) -> BinaryFocalLossCost:
    """The same cost for ground truths that are tokens of a text."""
    return BinaryFocalLossCost(cost.alpha, cost.gamma, cost.eps, weight=cost.weight)
