"""Mask2Former."""

from collections.abc import Sequence
from typing import Optional, Union

import mmdet.models.dense_heads
import torch
from mmcv.ops import point_sample
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import embedding_bag

from uotod_mmdet.losses.checks import full_precision
from uotod_mmdet.plan import Comparison
from uotod_mmdet.registry import MODELS

from .masks import Drawn, GroundTruths, MaskHead


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
    dense = 0.25  # measured on a CPU, 100 predictions and 20 ground truths at 4096 points

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

    def _comparison(self, logits: Tensor, gts: GroundTruths, drawn: Optional[tuple[Tensor, Tensor]]) -> Comparison:
        assert drawn is not None
        with torch.no_grad():
            points = self._loss_points(logits, drawn) if len(logits) else logits.new_zeros(0, self.num_points, 2)

        def preds(logits: Tensor, places: Tensor) -> Tensor:
            return point_sample(logits[:, None], points.index_select(0, places))[:, 0]

        def targets(places: Tensor, of: Tensor) -> Tensor:
            return sampled_at(gts.masks, of, points.index_select(0, places))

        def all_targets(places: Tensor, image: int) -> Tensor:
            return all_sampled_at(gts.pixels[image], gts.masks.shape[1:], points.index_select(0, places))

        return Comparison(self.num_points, False, gts.num_matched, self.dense, preds, targets, all_targets)


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
    found = torch.empty(points.shape[:2], dtype=points.dtype, device=points.device)
    sampled = [
        point_sample(mask[None, None], points[some][None])[0, 0]
        for mask, some in zip(masks, order.split(counts))
        if len(some)
    ]
    found[order] = torch.cat(sampled)
    return found


@torch.no_grad()
def all_sampled_at(pixels: Tensor, size: Sequence[int], points: Tensor) -> Tensor:
    """What all masks of an image are at points, as grid_sample interpolates them.

    Args:
        pixels: The masks, pixel by pixel, (H * W, M).
        size: H, W.
        points: (r, P, 2), relative to the masks, (x, y).

    Returns:
        (r, P, M).
    """
    extent = points.new_tensor(size[::-1])
    place = points.flatten(0, 1) * extent - 0.5
    corner = place.floor()
    share = place - corner
    index, weight = [], []
    for right in (0, 1):
        for down in (0, 1):
            x, y = (corner + corner.new_tensor([right, down])).unbind(1)
            inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
            index.append((y.clamp(0, size[0] - 1) * size[1] + x.clamp(0, size[1] - 1)).long())
            of_x, of_y = (share if far else 1 - share for far in (right, down))
            weight.append(of_x[:, 0] * of_y[:, 1] * inside)
    sampled = embedding_bag(torch.stack(index, 1), pixels, mode='sum', per_sample_weights=torch.stack(weight, 1))
    return sampled.view(*points.shape[:2], -1)
