"""Each side to the other by a softmin of costs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ot import softmin
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner

SOURCES = ('target', 'prediction')


@TASK_UTILS.register_module()
class SoftMinAssigner(TransportAssigner):
    """One side spreads its mass by exp(-cost / reg), the other side is free; no iteration is needed.

    The limit of unbalanced transport in which one side is free: ``source='target'`` is reg_pred = 0 (each ground truth
    spreads one prediction's worth over predictions), ``source='prediction'`` is reg_target = 0 (each prediction spreads
    itself over ground truths and background). For reg -> 0 these are ClosestPrediction and ClosestTarget.

    Args:
        match_costs: mmdet match-cost config or list of them.
        source: 'target' or 'prediction': the side that spreads its mass.
        reg: Temperature, > 0, in units of the cost: costs are not normalized here.
        background_weight: Factor of the background, >= 0: of its mass N - M, spread evenly over predictions, for
            'target'; of exp(-background_cost / reg) for 'prediction'.
        **kwargs: See :class:`TransportAssigner`.
    """

    checks = {
        **TransportAssigner.checks,
        'reg': partial(number, above=0),
        'background_weight': partial(number, at_least=0),
    }

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        source: str = 'target',
        reg: float = 0.1,
        background_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        if source not in SOURCES:
            raise ValueError(f'source must be one of {SOURCES}, got {source!r}')
        self.source = source
        self.reg = reg
        self.background_weight = background_weight

    def _solve(self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor) -> Tensor:
        weight = self.background_weight if self.background else 0.0
        if self.source == 'target':
            plan = softmin(cost[:, :, :-1], self.reg, 1, gt_mask, pred_mask)
            share = (1 - gt_mask.sum(1) / pred_mask.sum(1).clamp(min=1)).clamp(min=0).to(plan.dtype)
            background = weight * share[:, None, None] * pred_mask[:, :, None]
            return torch.cat([plan, background], dim=2)
        background = gt_mask.new_full((len(gt_mask), 1), weight > 0)
        cost = cost.clone()
        if weight > 0:
            cost[:, :, -1] -= self.reg * torch.tensor(weight).log()
        return softmin(cost, self.reg, 2, torch.cat([gt_mask, background], dim=1), pred_mask)
