"""MaskFormer."""

from collections.abc import Sequence
from typing import Optional, Union

import mmdet.models.dense_heads
import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import interpolate

from uotod_mmdet.losses.checks import full_precision
from uotod_mmdet.plan import Comparison
from uotod_mmdet.registry import MODELS

from .masks import Drawn, GroundTruths, MaskHead


@MODELS.register_module()
class MaskFormerHead(MaskHead, mmdet.models.dense_heads.MaskFormerHead):
    """mmdet's MaskFormerHead, trained on the whole plan.

    Masks are matched at the resolution of the predictions, and compared by the losses at that of the images.

    Args:
        *args, **kwargs: mmdet's, and those of :class:`~uotod_mmdet.heads.masks.MaskHead`.
    """

    def _for_matching(
        self, all_mask_preds: Union[Tensor, Sequence[Tensor]], gts: GroundTruths
    ) -> tuple[Tensor, list[InstanceData], Drawn]:
        preds = all_mask_preds.flatten(0, 1) if isinstance(all_mask_preds, Tensor) else torch.cat(list(all_mask_preds))
        small = gts.masks.new_zeros(0, *preds.shape[2:])
        if len(gts.masks):
            small = interpolate(gts.masks[:, None], preds.shape[2:], mode='nearest')[:, 0]
        found = [InstanceData(labels=of, masks=masks) for of, masks in zip(gts.labels, small.split(gts.counts))]
        return full_precision(preds.detach()), found, ()

    def _comparison(self, logits: Tensor, gts: GroundTruths, drawn: Optional[tuple[Tensor, Tensor]]) -> Comparison:
        masks = gts.masks.flatten(1)

        def preds(logits: Tensor, places: Tensor) -> Tensor:
            size = gts.masks.shape[1:]
            return interpolate(logits[:, None], size, mode='bilinear', align_corners=False).flatten(1)

        def targets(places: Tensor, of: Tensor) -> Tensor:
            return masks.index_select(0, of)

        def all_targets(places: Tensor, image: int) -> Tensor:
            return masks.split(gts.counts)[image].t()

        return Comparison(masks.size(1), True, gts.num_matched, self.dense, preds, targets, all_targets)
