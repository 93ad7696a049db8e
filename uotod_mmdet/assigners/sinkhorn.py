"""Entropic optimal transport, balanced and unbalanced."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.costs import Batch, pairwise_overlaps
from uotod_mmdet.ops import to_device_of
from uotod_mmdet.ot import sinkhorn, solve_with_pot
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner

BLOCK = 1 << 21
"""Pairs whose overlaps are computed in one go, in whole images; 8 MB in float32."""


def dynamic_k(batch: Batch, topq: int) -> Tensor:
    """The sum of each ground truth's largest IoUs with the predictions, at least 1, (B, M) (OTA, section 3.3)."""
    if batch.bboxes is None or batch.gt_bboxes is None:
        raise ValueError(
            f"gt_mass='dynamic_k' needs bboxes (N, 4) of both sides; there are {batch.given()}: set gt_mass to a "
            'number.'
        )
    num_images, num_preds, num_gts = batch.shape
    largest = []
    step = max(BLOCK // max(num_preds * num_gts, 1), 1)
    for first in range(0, num_images, step):
        images = slice(first, first + step)
        overlaps = pairwise_overlaps(batch.bboxes[images], batch.gt_bboxes[images])
        if batch.pred_mask is not None:
            overlaps.mul_(batch.pred_mask[images, :, None])
        largest.append(overlaps.topk(min(topq, num_preds), dim=1).values.sum(1))
    return torch.cat(largest).clamp_(min=1)


def mass_by_layer(gt_mass: Sequence[float], batch: Batch) -> Tensor:
    """Mass of each ground truth from that of each decoder layer, (B, M); a batch of one layer gets the last."""
    if batch.num_layers not in (1, len(gt_mass)):
        found = 'has none' if batch.num_layers is None else f'has {batch.num_layers}'
        raise ValueError(
            f'gt_mass={list(gt_mass)} holds one number for each decoder layer, but this head {found}: give as many as '
            'there are layers, or one number. Only our heads of the DETR family and of masks have layers.'
        )
    chosen = gt_mass if batch.num_layers == len(gt_mass) else gt_mass[-1:]
    mass = to_device_of(torch.empty(0, dtype=batch.dtype, device=batch.device), chosen)
    return mass.repeat_interleave(len(batch.gt_mask) // len(chosen))[:, None].expand(batch.gt_mask.shape)


def _check_mass(name: str, value: Any) -> Union[float, str, list[float]]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f'{name} must hold one number for each decoder layer, got {value!r}')
        return [number(f'{name}[{index}]', mass, above=0) for index, mass in enumerate(value)]
    if isinstance(value, str):
        if value != 'dynamic_k':
            raise ValueError(f"{name} must be a positive number or 'dynamic_k', got {value!r}")
        return value
    return number(name, value, above=0, hint=" (or 'dynamic_k')")


def _check_solver(name: str, value: Any) -> str:
    if value == 'native':
        warnings.warn("solver='native' is now called solver='own'", DeprecationWarning, stacklevel=2)
        return 'own'
    if value not in ('own', 'pot'):
        raise ValueError(f"{name} must be 'own' or 'pot', got {value!r}")
    return value


@TASK_UTILS.register_module()
class BalancedSinkhornAssigner(TransportAssigner):
    r"""Soft matching in which every prediction and every ground truth gives or takes exactly its mass.

    The plan minimises <P, C> - reg * H(P) over plans with row sums 1/N and column sums ``gt_mass`` / N for a ground
    truth and the rest for the background (Cuturi, NeurIPS 2013; De Plaen et al., CVPR 2023). Ground truths that
    would hold more than all mass (M * gt_mass > N) share all mass equally, and the background gets none.

    Args:
        match_costs: mmdet match-cost config or list of them.
        reg: Weight of the entropy, > 0: relative to the image's largest absolute cost with ``normalize_cost``, in units
            of the cost without. None: ``reg_dimless`` / (log(2 N) + 1).
        reg_dimless: See ``reg``; meant for costs of about unit size, hence for ``normalize_cost``.
        normalize_cost: Divide the costs of an image by its largest absolute cost, background cost included. Set False
            for costs that hold a large constant, such as InsideGTCost, and give ``reg``.
        num_iter: Largest number of iterations.
        tol: Stop when the mass of each prediction and ground truth is right up to this fraction of that mass.
        gt_mass: Predictions' worth of mass of a ground truth: 1 for one-to-one (as in the paper), more for dense
            heads, or 'dynamic_k': the sum of its ``topq`` largest IoUs, at least 1 (OTA, CVPR 2021, section 3.3). A
            list has a number for each decoder layer of a head of the DETR family, such as [4, 4, 2, 2, 1, 1]: many
            predictions learn in early layers, and the last one stays free of duplicates (the mixed matching of
            Align-DETR, https://arxiv.org/abs/2304.07527). The encoder's proposals get the last number.
        topq: See ``gt_mass``.
        solver: 'own', or 'pot' for the independent and far slower solver of POT (pip install POT), one image at a
            time in float64. 'native' is a deprecated name of 'own'.
        **kwargs: See :class:`TransportAssigner`.
    """

    reg_pred: Optional[float] = None
    reg_target: Optional[float] = None
    newton_after: Optional[int] = 40  # see ot.sinkhorn
    checks = {
        **TransportAssigner.checks,
        'reg': partial(number, above=0, optional=True),
        'reg_dimless': partial(number, above=0),
        'normalize_cost': switch,
        'num_iter': partial(number, above=0, whole=True),
        'tol': partial(number, above=0),
        'gt_mass': _check_mass,
        'topq': partial(number, above=0, whole=True),
        'solver': _check_solver,
    }

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        reg: Optional[float] = None,
        reg_dimless: float = 0.12,
        normalize_cost: bool = True,
        num_iter: int = 200,
        tol: float = 1e-2,
        gt_mass: Union[float, str, Sequence[float]] = 1.0,
        topq: int = 20,
        solver: str = 'own',
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        self.reg = reg
        self.reg_dimless = reg_dimless
        self.normalize_cost = normalize_cost
        self.num_iter = num_iter
        self.tol = tol
        self.gt_mass = gt_mass
        self.topq = topq
        self.solver = solver

    def _gt_mass(self, batch: Batch) -> Optional[Tensor]:
        if isinstance(self.gt_mass, list):
            return mass_by_layer(self.gt_mass, batch)
        return dynamic_k(batch, self.topq) if self.gt_mass == 'dynamic_k' else None

    def _solve(
        self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_preds = pred_mask.sum(1).to(cost.dtype)
        at_least_one = num_preds.clamp(min=1)
        reg = self.reg_dimless / (at_least_one.log() + (1 + math.log(2))) if self.reg is None else self.reg
        exists, share = num_preds.clamp(max=1), 1 / at_least_one
        rows, columns = self._marginals(gt_mask, gt_mass, pred_mask, exists[:, None], share[:, None])
        relative = self.normalize_cost  # cheaper than dividing the cost
        options: dict[str, Any] = dict(num_iter=self.num_iter, tol=self.tol, relative=relative, scale=num_preds)
        solve = solve_with_pot if self.solver == 'pot' else partial(sinkhorn, newton_after=self.newton_after)
        result = solve(cost, rows, columns, reg, self.reg_pred, self.reg_target, **options)
        return result.plan, result.num_iter

    def _marginals(
        self, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor, exists: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mass of predictions (B, N) and of ground truths and background (B, M + 1); each side sums to 1.

        ``exists`` (B, 1): 1, or 0 for an image without predictions, which has nothing to send; ``share`` (B, 1): the
        mass of a prediction.
        """
        worth: Union[float, str, Sequence[float], Tensor] = self.gt_mass if gt_mass is None else gt_mass
        if not isinstance(worth, (float, Tensor)):
            needs = 'the overlaps of boxes' if isinstance(worth, str) else "a head's decoder layers"
            raise ValueError(f'gt_mass={worth!r} needs {needs}: give match() a gt_mass (B, M)')
        mass = gt_mask * (worth * (exists * share))
        total = mass.sum(1, keepdim=True)
        if self.background:
            return pred_mask * share, torch.cat([mass / total.clamp(min=1), (exists - total).clamp(min=0)], dim=1)
        # Without background and ground truths there is nothing to send.
        columns = torch.cat([mass / torch.where(total > 0, total, 1), torch.zeros_like(total)], dim=1)
        return pred_mask * (share * (total > 0)), columns


@TASK_UTILS.register_module()
class UnbalancedSinkhornAssigner(BalancedSinkhornAssigner):
    r"""Soft matching in which predictions and ground truths may give or take more or less than their mass.

    The plan minimises <P, C> - reg * H(P) + reg_pred * KL(P1 | a) + reg_target * KL(P'1 | b), a and b being the
    marginals of :class:`BalancedSinkhornAssigner` (De Plaen et al., CVPR 2023, section 3). A large ``reg_pred`` and
    small ``reg_target`` lead to each prediction's best ground truth or background; the reverse, to each ground
    truth's best prediction; both large, to the balanced matching.

    Args:
        match_costs: mmdet match-cost config or list of them.
        reg_pred: Weight of the predictions' marginal, >= 0: like ``reg``, relative to the image's largest absolute cost
            with ``normalize_cost`` (the default), in units of the cost without. None keeps the marginal exactly.
        reg_target: Weight of the marginal of ground truths and background, likewise.
        **kwargs: See :class:`BalancedSinkhornAssigner`.
    """

    checks = {
        **BalancedSinkhornAssigner.checks,
        **dict.fromkeys(
            ('reg_pred', 'reg_target'),
            partial(
                number, at_least=0, infinite=True, optional=True, hint=', or None for a marginal that is kept exactly'
            ),
        ),
    }

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        reg_pred: Optional[float] = 1e3,
        reg_target: Optional[float] = 1e-2,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        self.reg_pred = reg_pred
        self.reg_target = reg_target
