"""Matchability-Aware Loss: what a pair learns falls with its quality, how much it counts does not."""

from typing import Any, Optional

from torch import Tensor

from uotod_mmdet.ops import power
from uotod_mmdet.plan import Pairs
from uotod_mmdet.registry import MODELS

from .pair_quality_loss import PairQualityLoss


@MODELS.register_module()
class MatchabilityAwareLoss(PairQualityLoss):
    """BCE(p, u^gamma) of a pair of quality u, p^gamma BCE(p, 0) of other entries; p = sigmoid(pred).

    DEIM, https://arxiv.org/abs/2412.04234, equation 3. A pair of low quality counts as much as any other, where
    VarifocalLoss weighs it by its quality. As in mmdet's losses, the gradient flows through p^gamma, too; DEIM's code
    takes that factor as fixed.

    Args:
        gamma (float): Exponent of the quality and of the probability, >= 0. Defaults to 1.5.
        **kwargs: See :class:`PairQualityLoss`.
    """

    def __init__(self, gamma: float = 1.5, **kwargs: Any) -> None:
        super().__init__(gamma, **kwargs)

    def target(self, logits: Tensor, quality: Tensor, pairs: Optional[Pairs] = None) -> Tensor:
        """u^gamma, (K,); see :meth:`PairQualityLoss.target`."""
        return power(quality, self.gamma)
