"""Shared code of the heads of masks: one matching of all layers and images, losses of pairs, averages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional, Union

import torch
from mmdet.models.task_modules.samplers import MaskPseudoSampler
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.assigners import batch_matcher, check_assigner
from uotod_mmdet.costs import class_labels, make_batch
from uotod_mmdet.losses.checks import check_finite, full_precision
from uotod_mmdet.ops import to_device_of
from uotod_mmdet.plan import (
    MIN_WEIGHT,
    Comparison,
    MaskPairs,
    Pairs,
    check_classification_loss,
    check_mask_losses,
    check_min_weight,
    classification_losses,
    expand,
    mask_losses,
    plan_statistics,
    reading_of,
)

from .checks import check_floats, check_gt_masks, check_images
from .detr_heads import named_losses


@dataclass
class GroundTruths:
    """Ground truths of B images, G in all."""

    labels: list[Tensor]  # (M_i,) of each image
    masks: Tensor  # (G, H, W) of one image after the other, floats
    num_matched: int  # predictions that a one-to-one matching gives something, as many as mmdet's head compares

    @property
    def counts(self) -> list[int]:
        """Ground truths of each image."""
        return [len(labels) for labels in self.labels]

    @cached_property
    def pixels(self) -> list[Tensor]:
        """The masks of each image, pixel by pixel, (H * W, M_i)."""
        return [masks.flatten(1).t().contiguous() for masks in self.masks.split(self.counts)]


Drawn = Sequence[tuple[Tensor, Tensor]]
"""Random numbers for the points of each layer's losses; empty where nothing is random."""


class MaskHead:
    """Mixin of the heads of masks that train on the whole plan; all decoder layers and images are matched as one batch.

    A prediction's classification loss is that of the ground truths it goes to and of the background, weighted by the
    plan; the losses of masks are those of the pairs, weighted likewise. Averages are mmdet's with the matched mass in
    place of the number of positives. With a plan of zeros and ones (HungarianAssigner of ours or mmdet's) every loss is
    mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    # What mmdet's head, the other base, brings.
    assigner: Any
    class_weight: Any
    loss_cls: Any
    loss_dice: Any
    loss_mask: Any
    num_classes: int
    num_queries: int
    sampler: Any
    train_cfg: Any

    mask_labels = True
    """Whether ``loss_mask`` gets labels, see :func:`~uotod_mmdet.plan.check_mask_losses`."""

    dense = 0.0
    """See :class:`~uotod_mmdet.plan.Comparison`."""

    def __init__(self, *args: Any, min_weight: float = MIN_WEIGHT, **kwargs: Any) -> None:
        self.min_weight = check_min_weight(min_weight)
        loss_cls = kwargs.get('loss_cls')
        if isinstance(loss_cls, dict) and not isinstance(loss_cls.get('class_weight'), (list, tuple)):
            raise ValueError(
                f'{type(self).__name__}: class_weight of loss_cls must be a list of numbers, one for each class and '
                f'one for the background, by which the loss is averaged, got {loss_cls.get("class_weight")!r}: take '
                "dict(type='CrossEntropyLoss', class_weight=[...])."
            )
        super().__init__(*args, **kwargs)
        if self.train_cfg:
            self._check_config()

    def _check_config(self) -> None:
        """Refuse an assigner, a sampler or losses that cannot train this head; later the error would be obscure."""
        name = type(self).__name__
        check_assigner(self.assigner, None)
        self.matcher = batch_matcher(self.assigner)
        if not isinstance(self.sampler, MaskPseudoSampler):
            raise ValueError(
                f'{name} trains on all predictions, weighted by the plan, and cannot sample: set train_cfg.sampler '
                f"(now {type(self.sampler).__name__}) to dict(type='MaskPseudoSampler')."
            )
        if reading_of(self.loss_cls).reads_quality:
            raise ValueError(
                f'{name}: loss_cls={type(self.loss_cls).__name__} reads the IoU of boxes, which this head does not '
                "predict: take dict(type='CrossEntropyLoss', class_weight=[...])."
            )
        columns = self.num_classes + 1
        check_classification_loss(name, self.loss_cls, self.num_classes, columns)
        if len(self.class_weight) != columns:
            raise ValueError(
                f'{name}: class_weight of loss_cls holds {len(self.class_weight)} numbers, but there are '
                f'{self.num_classes} classes and the background: give a list of {columns}.'
            )
        check_mask_losses(name, self.loss_mask, self.loss_dice, self.mask_labels)

    def loss_by_feat(
        self,
        all_cls_scores: Union[Tensor, Sequence[Tensor]],
        all_mask_preds: Union[Tensor, Sequence[Tensor]],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """Losses of all decoder layers, the last without prefix, and the plan's statistics.

        Args:
            all_cls_scores: Logits of each of L layers, (B, N, C + 1), last column the background.
            all_mask_preds: Logits of the masks of each layer, (B, N, h, w).
            batch_gt_instances: ``labels`` (M,) and ``masks`` (M, H, W) of each image, which has H x W pixels with its
                padding; stuff of panoptic segmentation included, as ``preprocess_gt`` gives them.
            batch_img_metas: Meta information of each image.

        Raises:
            TypeError: If scores or masks are not floating-point tensors.
            ValueError: If shapes disagree, costs or losses are not finite, or an assigner's cost reads what this head
                does not give.
        """
        name = type(self).__name__
        gts = self._check_inputs(all_cls_scores, all_mask_preds, batch_gt_instances, batch_img_metas)
        num_layers, num_images = len(all_cls_scores), len(batch_gt_instances)
        with torch.autocast(all_cls_scores[0].device.type, enabled=False):
            scores = full_precision(torch.cat(list(all_cls_scores)))  # (L * B, N, C + 1)
            masks, gt_instances, drawn = self._for_matching(all_mask_preds, gts)
            layers = list(all_mask_preds)
            batch = make_batch(
                dict(scores=scores.detach(), masks=masks),
                gt_instances,
                list(batch_img_metas) * (len(gt_instances) // num_images),
                self.matcher.box_source,
                num_classes=self.num_classes,
                score_format='logits',
                repeats=num_layers * num_images // len(gt_instances),
            )
            del masks
            matching = self.matcher.match_batch(batch)
            pairs = expand(matching.plan, self.min_weight)
            mass = pairs.mass.view(num_layers, num_images)
            num_masks = reduce_mean(mass.clamp(min=1).sum(1)).clamp(min=1)  # mmdet counts one in an empty image, too
            sums = self._layer_sums(layers, pairs, gts, drawn)
            losses = dict(
                loss_cls=self._class_losses(scores, batch.gt_labels, pairs, num_layers),
                loss_mask=torch.stack([of_mask for of_mask, _ in sums]) / num_masks,
                loss_dice=torch.stack([of_dice for _, of_dice in sums]) / num_masks,
            )
            inputs = {f'all_mask_preds[{layer}]': preds for layer, preds in enumerate(layers)}
            check_finite(name, losses, dict(all_cls_scores=scores, **inputs))
            statistics = plan_statistics(pairs, batch.gt_mask, matching.num_iter, self.assigner)
        return {**named_losses(losses), **statistics}

    def _check_inputs(
        self,
        all_cls_scores: Union[Tensor, Sequence[Tensor]],
        all_mask_preds: Union[Tensor, Sequence[Tensor]],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
    ) -> GroundTruths:
        name = type(self).__name__
        if not len(all_cls_scores) or len(all_cls_scores) != len(all_mask_preds):
            raise ValueError(
                f'{name}: all_cls_scores and all_mask_preds must hold the same decoder layers, at least one, got '
                f'{len(all_cls_scores)} and {len(all_mask_preds)}.'
            )
        shape: tuple[Optional[int], ...] = (None, None, self.num_classes + 1)
        size: tuple[Optional[int], ...] = (None, None)
        for layer, (scores, masks) in enumerate(zip(all_cls_scores, all_mask_preds)):
            check_floats(name, f'all_cls_scores[{layer}]', scores, '(B, N, C + 1)', shape)
            shape = tuple(scores.shape)
            check_floats(name, f'all_mask_preds[{layer}]', masks, '(B, N, h, w)', (*shape[:2], *size))
            size = tuple(masks.shape[2:])
        check_images(name, shape[0], batch_gt_instances, batch_img_metas, None)
        labels = class_labels(batch_gt_instances)
        check_gt_masks(name, batch_gt_instances, batch_img_metas)
        like = full_precision(all_mask_preds[0][:0])
        num_matched = sum(min(scores.size(1), len(of_image)) for of_image in labels)
        return GroundTruths(labels, torch.cat([gt.masks for gt in batch_gt_instances]).to(like), num_matched)

    def _class_losses(self, scores: Tensor, gt_labels: Tensor, pairs: Pairs, num_layers: int) -> Tensor:
        """Classification loss of each layer, (L,)."""
        labels = gt_labels.flatten().index_select(0, pairs.gts)
        losses = classification_losses(self.loss_cls, scores.flatten(0, 1), labels, self.num_classes, pairs, None)
        class_weight = to_device_of(pairs.weight, self.class_weight)
        avg_factor = class_weight[-1] * pairs.background.view(num_layers, -1).sum(1)
        of_pairs = pairs.sum_by_row(pairs.weight * class_weight.index_select(0, labels))
        avg_factor = avg_factor + of_pairs.view(num_layers, -1).sum(1)
        # As mmdet's weight_reduce_loss divides.
        return losses.view(num_layers, -1).sum(1) / (avg_factor + torch.finfo(torch.float32).eps)

    def _layer_sums(
        self, layers: list[Tensor], pairs: Pairs, gts: GroundTruths, drawn: Drawn
    ) -> list[tuple[Tensor, Tensor]]:
        """Sums of ``loss_mask`` and ``loss_dice`` of each layer."""
        num_layers, num_images = len(layers), len(gts.labels)
        num_rows, max_gts = len(pairs.background) // num_layers, max(gts.counts)
        layer_of = pairs.images.div(num_images, rounding_mode='floor')
        image_of = pairs.images - layer_of * num_images
        first = torch.tensor([0, *gts.counts[:-1]]).cumsum(0).to(image_of.device)
        places = pairs.gts - pairs.images * max_gts + first[image_of]
        counts = torch.bincount(layer_of, minlength=num_layers).tolist()
        rows = pairs.rows - layer_of * num_rows
        split = [values.split(counts) for values in (rows, places, pairs.weight)]
        ends = torch.tensor(gts.counts).cumsum(0).tolist()
        sums = []
        for layer, (rows, of, weight) in enumerate(zip(*split)):
            rows, row = torch.unique_consecutive(rows, return_inverse=True)
            logits = full_precision(layers[layer].flatten(0, 1).index_select(0, rows))
            of_images = rows.div(num_rows // num_images, rounding_mode='floor').bincount(minlength=num_images)
            row_ends = of_images.cumsum(0).tolist()
            images = list(zip(map(slice, [0, *row_ends], row_ends), map(slice, [0, *ends], ends)))
            pairs_of_layer = MaskPairs(logits, row, of, weight, images)
            comparison = self._comparison(logits, gts, drawn[layer] if drawn else None)
            sums.append(mask_losses(self.loss_mask, self.loss_dice, pairs_of_layer, comparison))
        return sums

    def _for_matching(
        self, all_mask_preds: Union[Tensor, Sequence[Tensor]], gts: GroundTruths
    ) -> tuple[Tensor, list[InstanceData], Drawn]:
        """What the costs compare: masks (L * B, N, ...), ground truths of B or of L * B images; and random numbers."""
        raise NotImplementedError

    def _comparison(self, logits: Tensor, gts: GroundTruths, drawn: Optional[tuple[Tensor, Tensor]]) -> Comparison:
        """What the losses of a layer compare, whose matched predictions have the masks ``logits`` (R, h, w)."""
        raise NotImplementedError
