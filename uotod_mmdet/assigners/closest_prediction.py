"""Each ground truth to its closest prediction."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ot import closest_row
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner


@TASK_UTILS.register_module()
class ClosestPredictionAssigner(TransportAssigner):
    """Each ground truth goes whole to its cheapest prediction; several may share a prediction.

    The limit reg = 0, reg_pred = 0 of unbalanced transport (De Plaen et al., CVPR 2023, Proposition 1). The hard
    reading gives a shared prediction to one of its ground truths; with ``keep_every_gt`` the others get the best free
    prediction.

    Args:
        match_costs: mmdet match-cost config or list of them.
        threshold: A ground truth whose best cost is above this is matched to nothing. None: no limit.
        uniform_background: True: the predictions' unmatched mass is spread evenly over the background column, which
            is the exact limit; False: each unmatched prediction goes whole to the background, as in the paper's figure.
        **kwargs: See :class:`TransportAssigner`.
    """

    checks = {
        **TransportAssigner.checks,
        'threshold': partial(number, infinite=True, optional=True),
        'uniform_background': switch,
    }

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        threshold: Optional[float] = None,
        uniform_background: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        self.threshold = threshold
        self.uniform_background = uniform_background

    def _solve(self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor) -> Tensor:
        cost = cost[:, :, :-1].masked_fill(~pred_mask[:, :, None], torch.inf)
        if self.threshold is not None:
            gt_mask = gt_mask & (cost <= self.threshold).any(1)
        plan = closest_row(cost, gt_mask)
        if not self.background:
            background = plan.new_zeros(*plan.shape[:2], 1)
        elif self.uniform_background:
            share = (1 - plan.sum((1, 2)) / pred_mask.sum(1).clamp(min=1)).clamp(min=0)
            background = share[:, None, None].expand(-1, cost.size(1), 1)
        else:
            background = (plan.sum(2, keepdim=True) == 0).to(plan.dtype)
        return torch.cat([plan, background], dim=2) * pred_mask[:, :, None]
