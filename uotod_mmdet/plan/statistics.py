"""Statistics of a plan to watch during training."""

import logging
import math
from typing import Any, Optional
from weakref import WeakKeyDictionary

import torch
from mmengine.logging import print_log
from torch import Tensor

from uotod_mmdet.ops import act_if, is_traced

from .pairs import Pairs


def plan_statistics(
    pairs: Pairs, gt_mask: Tensor, num_iter: Optional[Tensor], assigner: Any = None
) -> dict[str, Tensor]:
    """Statistics to watch during training; no name contains 'loss', so that mmengine logs but does not sum them.

    Args:
        pairs: The plan.
        gt_mask: False on padding, (B, M).
        num_iter: Iterations of the solver, (B,); None: the strategy does not iterate.
        assigner: Maker of the plan. A warning is logged once if the plan is so soft that most predictions share each
            ground truth.

    Returns:
        ``matched_mass``: predictions' worth of mass on ground truths, mean of the images; ``unmatched_gts``: share of
        ground truths that hold less than 0.5; ``plan_entropy``: mean entropy, in nats, of the rows of predictions that
        give more to ground truths than to the background; ``sinkhorn_iters``: mean iterations, where there are any.
    """
    images, gts = max(pairs.num_images, 1), gt_mask.sum().clamp(min=1)
    if assigner is not None and not is_traced():
        _warn_if_too_soft(pairs, gts, assigner)
    gt_mass = pairs.weight.new_zeros(gt_mask.numel()).scatter_add(0, pairs.gts, pairs.weight)
    unmatched = (gt_mass < 0.5) & gt_mask.flatten()
    mass = pairs.matched
    row_mass, matched = pairs.background + mass, mass > pairs.background
    # -sum p log p of p = P / mass is the logarithm of the mass less sum P log P / mass.
    sums = _p_log_p(pairs.background).scatter_add(0, pairs.rows, _p_log_p(pairs.weight))
    entropy = torch.where(matched, row_mass.log() - sums / row_mass, 0).sum() / matched.sum().clamp(min=1)
    statistics = dict(matched_mass=mass.sum() / images, unmatched_gts=unmatched.sum() / gts, plan_entropy=entropy)
    if num_iter is not None:
        statistics['sinkhorn_iters'] = num_iter.to(entropy.dtype).mean()
    return statistics


def _p_log_p(mass: Tensor) -> Tensor:
    """p log p of each entry; torch.xlogy and torch.special.entr take four times as long on a CPU."""
    return mass * mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


EVERYONE, EVERYONE_ALIKE = 0.5, 0.99
"""Shares of all pairs of predictions and ground truths that must carry a plan for it to be called too soft.

At reg=50 our configs have 0.65 to 1, at reg=0.05 dense heads and DINO have 0.0 to 0.22. The second is for plans that
give a ground truth one prediction's worth: the queries of an untrained DETR predict the same, and reg=0.05 gives 0.94.
"""

_LOOK_EVERY = 50
"""Batches from one look at the softness of an assigner's plans to the next; the first few are looked at, too."""

_batches: WeakKeyDictionary = WeakKeyDictionary()  # how many each assigner has matched; infinite once it was warned of


def _warn_if_too_soft(pairs: Pairs, gts: Tensor, assigner: Any) -> None:
    """Log, once for an assigner, that most predictions share each ground truth in its plan.

    The pairs that carry a plan are counted by their participation ratio, (sum P)^2 / sum P^2: K for K equal weights.
    """
    number = _batches.get(assigner, 0)
    _batches[assigner] = number + 1
    if number > 2 and (number == math.inf or number % _LOOK_EVERY):
        return
    weight = pairs.weight.detach()
    mass, square = weight.sum(), torch.dot(weight, weight)
    carrying = mass.square() / square.clamp(min=torch.finfo(weight.dtype).tiny)
    num_preds = len(pairs.background) // max(pairs.num_images, 1)
    soft = square < 0.5 * mass  # a hard plan of few predictions is not

    def warn() -> None:
        if _batches.get(assigner) == math.inf:
            return
        _batches[assigner] = math.inf
        numbers = ', '.join(f'{n}={getattr(assigner, n)}' for n in ('reg', 'reg_dimless') if hasattr(assigner, n))
        print_log(
            f'{type(assigner).__name__}: the plan is so soft that it teaches everything to everyone: each ground truth '
            f'is shared by about {float(carrying / gts):.0f} of {num_preds} predictions, which give it '
            f"{float(square / mass):.2g} of themselves on average, and together {float(mass / gts):.3g} predictions' "
            f'worth. Lower reg{f" (now {numbers})" if numbers else ""} until it is small beside the differences of the '
            'match costs, 0.01 to 0.1 for costs of about 1, and watch matched_mass and plan_entropy in the log.',
            logger='current',
            level=logging.WARNING,
        )

    share = torch.where(mass > 2 * gts, EVERYONE, EVERYONE_ALIKE)
    act_if(soft & (carrying > share * num_preds * gts), warn)
