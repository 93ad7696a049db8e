"""Dense heads whose priors are points with strides, and that know no padding: YOLOX and FCOS."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dense import DenseHead


class PointHead(DenseHead):
    """Mixin of the dense heads that predict at each point of the feature maps, those on the padding included."""

    prior_format = 'point'
    prior_shift = 0.0
    """What is added to the points that the assigner gets, in strides."""

    num_base_priors = 1

    def grid(self, sizes: Sequence[Any], batch_img_metas: Sequence[dict], like: Tensor) -> tuple[list[Tensor], Tensor]:
        """Points and strides of each level, (N_l, 4), pixels; all take part, (B, N)."""
        levels = self.prior_generator.grid_priors(sizes, dtype=like.dtype, device=like.device, with_stride=True)
        if self.prior_shift:
            levels = [torch.cat([level[:, :2] + self.prior_shift * level[:, 2:], level[:, 2:]], 1) for level in levels]
        num_priors = sum(map(len, levels))
        return levels, torch.ones(len(batch_img_metas), num_priors, dtype=torch.bool, device=like.device)
