"""IoU-aware BCE: a pair learns a mean of its score and its IoU, less the more pairs are better."""

from typing import Any, Optional

import torch
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.plan import Pairs
from uotod_mmdet.registry import MODELS

from .pair_quality_loss import PairQualityLoss

SMALLEST = 0.01
"""Smallest target before the factor of the rank, as in the authors' code."""


@MODELS.register_module()
class IoUAwareBCELoss(PairQualityLoss):
    """BCE(p, exp(-rank / tau) t) of a pair, t = p^alpha u^(1 - alpha), p^gamma BCE(p, 0) of other entries.

    Align-DETR, https://arxiv.org/abs/2304.07527, equations 4 to 7; p = sigmoid(pred), u the IoU, t at least 0.01 and
    without gradient. The rank of a pair is the mass of the pairs of its ground truth whose t is larger: 0, 1, 2... in a
    plan of ones. Outside a plan, as for denoising queries, ranks are 0. Box losses keep the weights of the plan, which
    Align-DETR multiplies by the factors of the ranks.

    Args:
        alpha (float): Exponent of the score in the target, in [0, 1]. Defaults to 0.25.
        gamma (float): Exponent of the probability in the loss of negatives, >= 0. Defaults to 2.0.
        tau (float): Ranks over which the target falls to its e-th part, > 0. Defaults to 1.5.
        **kwargs: See :class:`PairQualityLoss`.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, tau: float = 1.5, **kwargs: Any) -> None:
        super().__init__(gamma, **kwargs)
        self.alpha = number('IoUAwareBCELoss: alpha', alpha, at_least=0)
        if self.alpha > 1:
            raise ValueError(f'IoUAwareBCELoss: alpha must be in [0, 1], got {alpha}')
        self.tau = number('IoUAwareBCELoss: tau', tau, above=0)

    def target(self, logits: Tensor, quality: Tensor, pairs: Optional[Pairs] = None) -> Tensor:
        """exp(-rank / tau) t, (K,); see :meth:`PairQualityLoss.target`."""
        target = (logits.sigmoid().pow(self.alpha) * quality.detach().pow(1 - self.alpha)).clamp(min=SMALLEST)
        if pairs is None:
            return target
        return target * torch.exp(mass_rank(target, pairs) / -self.tau).to(target.dtype)


def mass_rank(values: Tensor, pairs: Pairs) -> Tensor:
    """Mass of the pairs of the same ground truth that have a larger value, those listed earlier among equals, (K,)."""
    order = values.argsort(descending=True, stable=True)
    order = order[pairs.gts[order].argsort(stable=True)]
    gts, weight = pairs.gts[order].contiguous(), pairs.weight.detach()[order].double()
    before = weight.cumsum(0) - weight
    rank = before - before[torch.searchsorted(gts, gts)]
    return torch.zeros_like(rank).scatter(0, order, rank)
