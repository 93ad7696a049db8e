"""Heads of the DETR family.

Our DETRHead is a base of the others beside mmdet's class of the same name; by Python's method order it then stands
between that class and mmdet's DETRHead, whose losses it replaces. What the members of the family add (reference
points, two stages, box refinement, denoising) stays mmdet's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.assigners import batch_matcher, check_assigner
from uotod_mmdet.costs import Batch, make_batch
from uotod_mmdet.losses.checks import check_finite, full_precision
from uotod_mmdet.ops import to_device_of
from uotod_mmdet.plan import (
    MIN_WEIGHT,
    SOFTMAX,
    Pairs,
    box_losses,
    check_box_loss,
    check_classification_loss,
    check_min_weight,
    classification_losses,
    copies_no_rows,
    expand,
    plan_statistics,
)
from uotod_mmdet.registry import MODELS

from .checks import check_floats, check_gt_bboxes, check_images, check_pair_boxes


@MODELS.register_module()
class DETRHead(mmdet.models.dense_heads.DETRHead):
    """mmdet's DETRHead, trained on the whole plan; all decoder layers and images are matched as one batch.

    A prediction's classification loss is that of the ground truths it goes to and of the background, weighted by the
    plan; box losses are those of the pairs, weighted likewise. Averages are mmdet's with the matched mass in place of
    the number of positives and the background mass in place of that of negatives. With a plan of zeros and ones
    (HungarianAssigner of ours or mmdet's) every loss is mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's. ``class_weight`` and ``bg_cls_weight`` of a softmax ``loss_cls`` work in every head
            of the family.
    """

    plan_methods: ClassVar[tuple[str, ...]] = ('loss_by_feat', 'loss_by_feat_single')
    """Methods that put the losses on the plan, the outer first; see :func:`~uotod_mmdet.heads.on_plan`."""
    plan_bypasses: ClassVar[tuple[str, ...]] = ('get_targets', '_get_targets_single')
    """Methods of mmdet's head that training on the plan does not call."""

    def __init__(self, *args: Any, min_weight: float = MIN_WEIGHT, **kwargs: Any) -> None:
        self.min_weight = check_min_weight(min_weight)
        # mmdet's turns bg_cls_weight into class weights in its very own DETRHead only.
        num_classes: Any = kwargs.get('num_classes', args[0] if args else None)
        bg_cls_weight = None
        loss_cls = kwargs.get('loss_cls', dict(type='CrossEntropyLoss', class_weight=1.0, bg_cls_weight=0.1))
        kwargs['loss_cls'] = loss_cls = dict(loss_cls)
        class_weight = loss_cls.get('class_weight')
        if isinstance(class_weight, (int, float)) and not loss_cls.get('use_sigmoid', False):
            bg_cls_weight = loss_cls.pop('bg_cls_weight', class_weight)
            loss_cls['class_weight'] = [float(class_weight)] * num_classes + [float(bg_cls_weight)]
        try:
            super().__init__(*args, **kwargs)
        except AttributeError as error:
            if error.name != 'use_sigmoid':
                raise
            raise ValueError(
                f'{type(self).__name__}: loss_cls={loss_cls["type"]} is no classification loss, for it does not say by '
                f'use_sigmoid how scores are read. Losses that fit: {SOFTMAX}.'
            ) from error
        if bg_cls_weight is not None:
            self.bg_cls_weight = bg_cls_weight
        if self.train_cfg:
            name = type(self).__name__
            check_assigner(self.assigner, None)
            self.matcher = batch_matcher(self.assigner)
            self._check_loss_cls()
            for argument in ('loss_bbox', 'loss_iou'):
                check_box_loss(name, argument, getattr(self, argument))

    @property
    def score_columns(self) -> int:
        """Columns of the scores."""
        return self.cls_out_channels

    def _check_loss_cls(self) -> None:
        check_classification_loss(type(self).__name__, self.loss_cls, self.num_classes, self.cls_out_channels)

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all decoder layers, the last without prefix, and the plan's statistics.

        A subclass with a ``loss_by_feat_single`` of its own has it called for each layer, as in mmdet. Then each layer
        is a batch of its own, and there are no statistics.

        Args:
            all_layers_cls_scores: (L, B, N, C).
            all_layers_bbox_preds: (L, B, N, 4) as (cx, cy, w, h), relative to the image.
            batch_gt_instances: ``bboxes`` (M, 4) pixels and ``labels`` (M,) of each image.
            batch_img_metas: ``img_shape`` of each image.
            batch_gt_instances_ignore: Ignored boxes of each image; DETR detectors pass none.
        """
        if type(self).loss_by_feat_single is not DETRHead.loss_by_feat_single:
            images, layers = (batch_gt_instances, batch_img_metas), zip(all_layers_cls_scores, all_layers_bbox_preds)
            of_layers = zip(*(self.loss_by_feat_single(*layer, *images) for layer in layers))
            return named_losses(dict(zip(('loss_cls', 'loss_bbox', 'loss_iou'), of_layers)))
        losses, statistics = self._layer_losses(
            all_layers_cls_scores,
            all_layers_bbox_preds,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore,
        )
        return {**named_losses(losses), **statistics}

    def loss_by_feat_single(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of one layer; two-stage heads call it for the encoder's proposals."""
        losses, _ = self._layer_losses(cls_scores[None], bbox_preds[None], batch_gt_instances, batch_img_metas)
        return losses['loss_cls'][0], losses['loss_bbox'][0], losses['loss_iou'][0]

    def _layer_losses(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
        pred_mask: Optional[Tensor] = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each loss of each layer (L,), and the statistics of the plans of all.

        ``pred_mask`` (L, B, N) is False on predictions that take no part; None: all do.
        """
        name = type(self).__name__
        check_floats(name, 'cls_scores', cls_scores, '(L, B, N, C)', (None, None, None, self.score_columns))
        check_floats(name, 'bbox_preds', bbox_preds, '(L, B, N, 4)', (*cls_scores.shape[:3], 4))
        if not len(cls_scores):
            raise ValueError(f'{name}: cls_scores must hold at least one decoder layer, got {tuple(cls_scores.shape)}.')
        check_images(name, cls_scores.size(1), batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        with torch.autocast(cls_scores.device.type, enabled=False):
            num_layers, (num_preds, columns) = len(cls_scores), cls_scores.shape[2:]
            scores, boxes = full_precision(cls_scores).flatten(0, 2), full_precision(bbox_preds).flatten(0, 2)
            shapes = [meta['img_shape'][:2] for meta in batch_img_metas] * num_layers
            sizes = to_device_of(boxes, [[w, h, w, h] for h, w in shapes])
            # What mmdet's bbox_cxcywh_to_xyxy does one column at a time, which takes 2 % of the whole.
            centers, sides = boxes.detach().split(2, dim=1)
            corners = torch.cat([torch.sub(centers, sides, alpha=0.5), torch.add(centers, sides, alpha=0.5)], dim=1)
            batch = make_batch(
                dict(
                    scores=scores.detach().view(len(sizes), num_preds, columns),
                    bboxes=corners.view(len(sizes), num_preds, 4) * sizes[:, None],
                ),
                batch_gt_instances,
                batch_img_metas,
                self.matcher.box_source,
                batch_gt_instances_ignore,
                None if pred_mask is None else pred_mask.flatten(0, 1),
                num_classes=self.num_classes,
                score_format='logits',
                repeats=num_layers,
            )
            gt_bboxes = check_gt_bboxes(name, batch)
            check_pair_boxes(name, gt_bboxes, bbox_preds=boxes)
            matching = self.matcher.match_batch(batch)
            pairs = expand(matching.plan, self.min_weight, few=self._copies_rows())

            def by_layer(values: Tensor) -> Tensor:
                return values.view(num_layers, -1).sum(1)

            num_pos, num_neg = by_layer(pairs.matched), by_layer(pairs.background)
            cls_avg_factor = num_pos + num_neg * self.bg_cls_weight
            if self.sync_cls_avg_factor:
                cls_avg_factor = reduce_mean(cls_avg_factor)
            num_pos = reduce_mean(num_pos).clamp(min=1)

            box_args = boxes, gt_bboxes.flatten(0, 1), pairs, sizes
            of_rows = dict(
                loss_cls=self._classification(scores, batch, pairs),
                loss_bbox=pairs.sum_by_row(box_losses(self.loss_bbox, *box_args, relative=True)),
                loss_iou=pairs.sum_by_row(box_losses(self.loss_iou, *box_args)),
            )
            divisors = torch.stack([cls_avg_factor.clamp(min=1), num_pos, num_pos])
            sums = torch.stack(list(of_rows.values())).view(len(of_rows), num_layers, -1).sum(2)
            losses = dict(zip(of_rows, (sums / divisors).unbind()))
            check_finite(name, losses, dict(cls_scores=scores, bbox_preds=boxes))
            return losses, plan_statistics(pairs, batch.gt_mask, matching.num_iter, self.assigner)

    def _copies_rows(self) -> bool:
        """Whether the classification loss copies scores for each pair, so that pairs of weight 0 are worth dropping."""
        return not copies_no_rows(self.loss_cls)

    def _classification(self, scores: Tensor, batch: Batch, pairs: Pairs) -> Tensor:
        """Classification loss of each prediction, (B * N,); scores (B * N, C)."""

        def quality() -> Tensor:
            assert batch.bboxes is not None and batch.gt_bboxes is not None  # DETR heads have both
            boxes, gts = batch.bboxes.flatten(0, 1)[pairs.rows], batch.gt_bboxes.flatten(0, 1)[pairs.gts]
            return bbox_overlaps(boxes, gts, is_aligned=True)

        labels = batch.gt_labels.flatten().index_select(0, pairs.gts)
        return classification_losses(self.loss_cls, scores, labels, self.num_classes, pairs, quality)


def named_losses(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Losses of each layer, (L,) or a sequence, by mmdet's names: those of the last layer without prefix."""
    by_layer = {name: values.unbind() if isinstance(values, Tensor) else values for name, values in losses.items()}
    named = {name: values[-1] for name, values in by_layer.items()}
    for layer in range(min([len(values) for values in by_layer.values()]) - 1):
        named.update({f'd{layer}.{name}': values[layer] for name, values in by_layer.items()})
    return named


@MODELS.register_module()
class ConditionalDETRHead(mmdet.models.dense_heads.ConditionalDETRHead, DETRHead):
    """mmdet's ConditionalDETRHead, trained on the whole plan; see :class:`DETRHead`."""


@MODELS.register_module()
class DABDETRHead(mmdet.models.dense_heads.DABDETRHead, DETRHead):
    """mmdet's DABDETRHead, trained on the whole plan; see :class:`DETRHead`."""


@MODELS.register_module()
class DeformableDETRHead(mmdet.models.dense_heads.DeformableDETRHead, DETRHead):
    """mmdet's DeformableDETRHead, trained on the whole plan; see :class:`DETRHead`.

    With ``as_two_stage`` the encoder's proposals are trained on their own plan.
    """


@MODELS.register_module()
class DINOHead(mmdet.models.dense_heads.DINOHead, DETRHead):
    """mmdet's DINOHead, trained on the whole plan; see :class:`DETRHead`. The denoising part is mmdet's."""

    def loss_dn(
        self,
        all_layers_denoising_cls_scores: Tensor,
        all_layers_denoising_bbox_preds: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[Tensor], ...]:
        """mmdet's losses of the denoising part, refused where they are not finite."""
        inputs = dict(
            all_layers_denoising_cls_scores=all_layers_denoising_cls_scores,
            all_layers_denoising_bbox_preds=all_layers_denoising_bbox_preds,
        )
        losses = super().loss_dn(*inputs.values(), *args, **kwargs)
        names = 'dn_loss_cls', 'dn_loss_bbox', 'dn_loss_iou'
        check_finite(type(self).__name__, {key: torch.stack(list(loss)) for key, loss in zip(names, losses)}, inputs)
        return losses
