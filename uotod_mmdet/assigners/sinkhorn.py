"""Entropic optimal transport, balanced and unbalanced."""

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.ot import sinkhorn
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner


def _check_positive(**arguments: Optional[float]) -> None:
    for name, value in arguments.items():
        if value is not None and not value > 0:
            raise ValueError(f'{name} must be positive, got {value}')


@TASK_UTILS.register_module()
class BalancedSinkhornAssigner(TransportAssigner):
    r"""Soft matching in which every prediction and every ground truth gives and takes exactly its mass.

    The plan minimises <P, C> - reg * H(P) over plans with row sums 1/N and column sums ``gt_mass`` / N for a ground
    truth and the rest for the background (Cuturi, NeurIPS 2013; De Plaen et al., CVPR 2023). Ground truths that
    would hold more than all mass (M * gt_mass > N) share it equally and leave the background none.

    Args:
        match_costs: mmdet match-cost config or list of them.
        reg: Weight of the entropy, in units of the cost, > 0. None: ``reg_dimless`` / (log(2 N) + 1).
        reg_dimless: See ``reg``; for costs of about unit size, hence with ``normalize_cost``.
        normalize_cost: Divide an image's costs by its own largest absolute one, background cost included. Turn it off
            with costs that hold a large constant, such as InsideGTCost, and give ``reg``.
        num_iter: Iterations at most.
        tol: Stop when the marginals are met up to this share of the total mass.
        gt_mass: Predictions' worth of mass of a ground truth: 1 for one-to-one, more for dense heads.
        **kwargs: See :class:`TransportAssigner`.
    """

    reg_pred: Optional[float] = None
    reg_target: Optional[float] = None

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]],
        reg: Optional[float] = None,
        reg_dimless: float = 0.12,
        normalize_cost: bool = True,
        num_iter: int = 200,
        tol: float = 1e-3,
        gt_mass: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        for name, value in dict(reg=reg, reg_dimless=reg_dimless, num_iter=num_iter, tol=tol, gt_mass=gt_mass).items():
            if value is not None and not value > 0:
                raise ValueError(f'{name} must be positive, got {value}')
        self.reg = reg
        self.reg_dimless = reg_dimless
        self.normalize_cost = normalize_cost
        self.num_iter = num_iter
        self.tol = tol
        self.gt_mass = gt_mass

    def _plan(self, cost: Tensor, gt_mask: Tensor) -> Tensor:
        batch, num_preds, _ = cost.shape
        if self.normalize_cost:
            largest = cost.abs().amax((1, 2), keepdim=True)
            cost = cost / torch.where(largest > 0, largest, 1)
        rows, columns = self._marginals(num_preds, gt_mask, cost.dtype)
        reg = self.reg_dimless / (math.log(2 * num_preds) + 1) if self.reg is None else self.reg
        result = sinkhorn(
            cost, rows, columns, reg, self.reg_pred, self.reg_target, num_iter=self.num_iter, tol=self.tol
        )
        return num_preds * result.plan

    def _marginals(self, num_preds: int, gt_mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mass of predictions (B, N) and of ground truths and background (B, M + 1); each side sums to 1."""
        real = gt_mask.to(dtype)
        num_gts = real.sum(1, keepdim=True)
        share = (num_gts * self.gt_mass / num_preds).clamp(max=1)  # of all mass, that ground truths hold
        if not self.background:
            share = (num_gts > 0).to(dtype)
        columns = torch.cat([real * share / num_gts.clamp(min=1), 1 - share], dim=1)
        rows = torch.full((len(real), num_preds), 1 / num_preds, dtype=dtype, device=real.device)
        if not self.background:
            rows = rows * share  # nothing to send where there is no ground truth
            columns[:, -1] = 0
        return rows, columns


@TASK_UTILS.register_module()
class UnbalancedSinkhornAssigner(BalancedSinkhornAssigner):
    r"""Soft matching in which predictions and ground truths may give or take more or less than their mass.

    The plan minimises <P, C> - reg * H(P) + reg_pred * KL(P1 | a) + reg_target * KL(P'1 | b), a and b being the
    marginals of :class:`BalancedSinkhornAssigner` (De Plaen et al., CVPR 2023, section 3). A large ``reg_pred`` and
    small ``reg_target`` approach each prediction to its best ground truth or background; the reverse, each ground
    truth to its best prediction; both large, the balanced matching.

    Args:
        match_costs: mmdet match-cost config or list of them.
        reg_pred: Weight of the predictions' marginal, in units of the cost, >= 0; None keeps it exactly.
        reg_target: Weight of the ground truths' and the background's marginal, likewise.
        **kwargs: See :class:`BalancedSinkhornAssigner`.
    """

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]],
        reg_pred: Optional[float] = 1e3,
        reg_target: Optional[float] = 1e-2,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        for name, value in (('reg_pred', reg_pred), ('reg_target', reg_target)):
            if value is not None and not value >= 0:
                raise ValueError(f'{name} must be >= 0, or None for a marginal that is kept exactly, got {value}')
        self.reg_pred = reg_pred
        self.reg_target = reg_target
