"""Each prediction to its closest ground truth or to the background."""

from typing import Optional

import torch
from torch import Tensor

from uotod_mmdet.ot import closest_column
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner


@TASK_UTILS.register_module()
class ClosestTargetAssigner(TransportAssigner):
    """Each prediction goes whole to its cheapest ground truth, or to the background if that is cheaper.

    The limit reg = 0, reg_target = 0 of unbalanced transport (De Plaen et al., CVPR 2023, Proposition 1). With the cost
    -IoU and ``background_cost=-0.5`` it is matching by an IoU threshold of 0.5, as SSD does.

    Args: see :class:`TransportAssigner`.
    """

    def _solve(self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor) -> Tensor:
        background = gt_mask.new_full((len(gt_mask), 1), self.background)
        return closest_column(cost, torch.cat([gt_mask, background], dim=1), pred_mask)
