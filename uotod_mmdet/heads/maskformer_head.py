"""MaskFormer."""

from collections.abc import Sequence
from typing import Optional, Union

import mmdet.models.dense_heads
import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import interpolate

from uotod_mmdet.losses.checks import full_precision
from uotod_mmdet.registry import MODELS

from .masks import Compared, Drawn, GroundTruths, MaskHead, repeated


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

    def _comparison(
        self, logits: Tensor, gts: GroundTruths, drawn: Optional[tuple[Tensor, Tensor]]
    ) -> tuple[Compared, int]:
        targets = gts.masks.flatten(1)

        def compared(logits: Tensor, places: Tensor, row: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            preds = interpolate(logits[:, None], gts.masks.shape[1:], mode='bilinear', align_corners=False)
            return repeated(preds.flatten(1), row), targets.index_select(0, of)

        return compared, targets.size(1)
