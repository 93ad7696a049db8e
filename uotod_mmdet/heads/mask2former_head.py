"""Mask2Former."""

from collections.abc import Sequence
from typing import Optional, Union

import mmdet.models.dense_heads
import torch
from mmcv.ops import point_sample
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.losses.checks import full_precision
from uotod_mmdet.registry import MODELS

from .masks import Compared, Drawn, GroundTruths, MaskHead, repeated


@MODELS.register_module()
class Mask2FormerHead(MaskHead, mmdet.models.dense_heads.Mask2FormerHead):
    """mmdet's Mask2FormerHead, trained on the whole plan.

    Masks are matched at random points, the same for all predictions of an image and layer, and compared by the losses
    at points of each prediction's own, most of them where it is uncertain. Random numbers are drawn in the order of
    mmdet's head, for as many predictions as a one-to-one matching matches: under one seed such a matching sees mmdet's
    points. Predictions that are matched beyond those get numbers that are drawn later.

    Args:
        *args, **kwargs: mmdet's, and those of :class:`~uotod_mmdet.heads.masks.MaskHead`.
    """

    mask_labels = False

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float

    def _for_matching(
        self, all_mask_preds: Union[Tensor, Sequence[Tensor]], gts: GroundTruths
    ) -> tuple[Tensor, list[InstanceData], Drawn]:
        num_layers, (num_images, num_preds) = len(all_mask_preds), all_mask_preds[0].shape[:2]
        points, drawn = [], []
        for _ in range(num_layers):
            points += [torch.rand(1, self.num_points, 2, device=gts.masks.device) for _ in range(num_images)]
            drawn.append(self._draw(gts.num_matched, gts.masks))
        of_layers = torch.cat(points).to(gts.masks.dtype).view(num_layers, num_images, self.num_points, 2)
        preds = gts.masks.new_empty(num_layers, num_images, num_preds, self.num_points)
        for layer, masks in enumerate(all_mask_preds):
            preds[layer] = point_sample(full_precision(masks.detach()), of_layers[layer])
        of_images = []
        for image, masks in enumerate(gts.masks.split(gts.counts)):
            sampled = masks.new_zeros(1, 0, num_layers * self.num_points)
            if len(masks):
                sampled = point_sample(masks[None], of_layers[:, image].reshape(1, -1, 2))
            of_images.append(sampled[0].view(len(masks), num_layers, self.num_points))
        found = [
            InstanceData(labels=labels, masks=sampled[:, layer])
            for layer in range(num_layers)
            for labels, sampled in zip(gts.labels, of_images)
        ]
        return preds.flatten(0, 1), found, drawn

    def _draw(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Random points for ``count`` predictions: those of which the uncertain are kept, and those kept anyway."""
        sizes = int(self.num_points * self.oversample_ratio), self.num_points - self._num_uncertain
        # mmdet draws nothing for nothing, and zero numbers do not move the generator.
        candidates, others = (torch.rand(count, size, 2, device=like.device) for size in sizes)
        return candidates, others

    @property
    def _num_uncertain(self) -> int:
        return int(self.importance_sample_ratio * self.num_points)

    def _loss_points(self, logits: Tensor, drawn: tuple[Tensor, Tensor]) -> Tensor:
        """Points of each mask (R, h, w), (R, num_points, 2), as get_uncertain_point_coords_with_randomness of mmdet."""
        count = len(logits)
        if count > len(drawn[0]):
            more = self._draw(count - len(drawn[0]), logits)
            drawn = torch.cat([drawn[0], more[0]]), torch.cat([drawn[1], more[1]])
        candidates, others = (values[:count].to(logits.dtype) for values in drawn)
        uncertainty = -point_sample(logits[:, None], candidates)[:, 0].abs()
        best = uncertainty.topk(self._num_uncertain, dim=1).indices
        return torch.cat([candidates.gather(1, best[:, :, None].expand(-1, -1, 2)), others], dim=1)

    def _comparison(
        self, logits: Tensor, gts: GroundTruths, drawn: Optional[tuple[Tensor, Tensor]]
    ) -> tuple[Compared, int]:
        assert drawn is not None
        with torch.no_grad():
            points = self._loss_points(logits, drawn) if len(logits) else logits.new_zeros(0, self.num_points, 2)

        def compared(logits: Tensor, places: Tensor, row: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            own = points.index_select(0, places)
            preds = point_sample(logits[:, None], own)[:, 0]
            return repeated(preds, row), sampled_at(gts.masks, of, repeated(own, row))

        return compared, self.num_points


@torch.no_grad()
def sampled_at(masks: Tensor, chosen: Tensor, points: Tensor) -> Tensor:
    """What chosen masks are at points of their own.

    Each mask is read in place: to copy the mask of each pair, as mmdet does, costs more than to sample it.

    Args:
        masks: (G, H, W).
        chosen: Index of a mask, (k,).
        points: (k, P, 2), relative to the mask, (x, y).

    Returns:
        (k, P).
    """
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=len(masks)).tolist()
    sorted_points = points[order].split(counts)
    found = torch.empty(points.shape[:2], dtype=points.dtype, device=points.device)
    sampled = [
        point_sample(mask[None, None], some[None])[0, 0] for mask, some in zip(masks, sorted_points) if len(some)
    ]
    found[order] = torch.cat(sampled)
    return found
