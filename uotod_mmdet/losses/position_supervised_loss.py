"""Position-supervised loss: a pair learns its IoU alone, and no score."""

from typing import Any, Optional

import torch
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import power, softplus
from uotod_mmdet.plan import Pairs
from uotod_mmdet.registry import MODELS

from .pair_quality_loss import PairQualityLoss


@MODELS.register_module()
class PositionSupervisedLoss(PairQualityLoss):
    """alpha |t - p|^gamma BCE(p, t) of a pair, (1 - alpha) p^gamma BCE(p, 0) of other entries; t = u^beta.

    Stable-DINO, https://arxiv.org/abs/2304.04742, equation 5; p = sigmoid(pred), u the IoU. Stable-DINO's DINO has
    ``loss_weight=6.0``.

    Args:
        beta (float): Exponent of the IoU in the target, >= 0. Defaults to 2.0.
        gamma (float): Exponent of the modulating factors, >= 0. Defaults to 2.0.
        alpha (float): Factor of pairs, in (0, 1), as in Focal Loss. Defaults to 0.25.
        rescale (bool): Whether, in each image of a plan, the targets are divided by the largest of them, each counted
            by its pair's weight beside the heaviest pair's of the image. Outside a plan, as for denoising queries,
            they are not. Defaults to True.
        **kwargs: See :class:`PairQualityLoss`.
    """

    def __init__(
        self, beta: float = 2.0, gamma: float = 2.0, alpha: float = 0.25, rescale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(gamma, **kwargs)
        self.beta = number('PositionSupervisedLoss: beta', beta, at_least=0)
        self.alpha = number('PositionSupervisedLoss: alpha', alpha, above=0)
        if self.alpha >= 1:
            raise ValueError(f'PositionSupervisedLoss: alpha must be in (0, 1), got {alpha}')
        self.rescale = switch('PositionSupervisedLoss: rescale', rescale)
        self.negative_factor = 1 - self.alpha

    def target(self, logits: Tensor, quality: Tensor, pairs: Optional[Pairs] = None) -> Tensor:
        """u^beta, rescaled, (K,); see :meth:`PairQualityLoss.target`."""
        target = power(quality, self.beta)
        if pairs is None or not self.rescale:
            return target
        weight, images = pairs.weight.detach().to(target.dtype), pairs.images
        largest = _largest_of_images(weight, pairs)
        share = weight / torch.where(largest > 0, largest, 1)[images]
        largest = _largest_of_images(share * target.detach(), pairs)
        return (target / torch.where(largest > 0, largest, 1)[images]).clamp(max=1)

    def positive(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each pair, (K,); see :meth:`PairQualityLoss.positive`."""
        distance = (target - logits.sigmoid()).abs()
        return self.alpha * power(distance, self.gamma) * (softplus(logits) - logits * target)


def _largest_of_images(values: Tensor, pairs: Pairs) -> Tensor:
    """Largest value of the pairs of each image, 0 where there are none, (B,)."""
    return values.new_zeros(pairs.num_images).scatter_reduce(0, pairs.images, values, 'amax')
