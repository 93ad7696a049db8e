"""TOOD head on the whole plan."""

from typing import Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import check_classification_loss, classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .centerness import centerness
from .checks import check_pair_boxes
from .dense import DenseHead, Matched


@MODELS.register_module()
class TOODHead(DenseHead, mmdet.models.dense_heads.TOODHead):
    """mmdet's TOODHead, trained on the whole plan.

    ``train_cfg.initial_assigner`` gives the plan of the first ``initial_epoch`` epochs, ``train_cfg.assigner`` that of
    the rest, in which :meth:`alignment_target` is what classes learn and what weighs the box losses beside the plan.
    The assigner gets probabilities; match costs read these as logits. With a plan of zeros and ones every loss is
    mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    score_format = 'probabilities'

    def _check_config(self) -> None:
        super()._check_config()
        check_classification_loss(
            'TOODHead', self.initial_loss_cls, self.num_classes, self.cls_out_channels, 'initial_loss_cls'
        )
        for argument in ('loss_cls', 'initial_loss_cls'):
            loss = getattr(self, argument)
            if not getattr(loss, 'activated', False):
                raise ValueError(
                    f'TOODHead predicts probabilities, but {argument}={type(loss).__name__} takes logits: set '
                    'activated=True in its config. Losses that fit: QualityFocalLoss and FocalLoss, and our '
                    'MatchabilityAwareLoss, IoUAwareBCELoss and PositionSupervisedLoss, with activated=True.'
                )
        self.alignment_matcher = self._matcher_of(self.alignment_assigner, alpha=self.alpha, beta=self.beta)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all levels together, and the plan's statistics; arguments as in mmdet."""
        images = batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4))
        self.epoch = MessageHub.get_current_instance().get_info('epoch') or 0  # none outside a Runner
        initial = self.epoch < self.initial_epoch
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            boxes = self.flatten(bbox_preds, 4)  # in strides
            strides = self.strides_of(cls_scores, boxes)
            matched = self.match(
                cls_scores,
                lambda _: boxes * strides,
                *images,
                matcher=self.matcher if initial else self.alignment_matcher,
            )
            pairs = matched.pairs
            stride = strides[pairs.rows % len(strides)]
            pred, target = boxes.flatten(0, 1).index_select(0, pairs.rows), matched.gt_bboxes / stride
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            overlaps = bbox_overlaps((pred * stride).detach(), matched.gt_bboxes, is_aligned=True)
            if initial:
                quality, box_quality = overlaps, centerness(self.anchor_center(matched.priors), matched.gt_bboxes)
                cls_mass = pairs.weight.sum()
            else:
                quality = box_quality = self.alignment_target(matched, overlaps)
                cls_mass = (quality * pairs.weight).sum()
            loss_cls = classification_losses(
                self.initial_loss_cls if initial else self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: quality,
            )
            weight = box_quality * pairs.weight
            loss_bbox = pair_losses(self.loss_bbox, pred, target, weight)
            losses = dict(
                loss_cls=loss_cls.sum() / reduce_mean(cls_mass).clamp(min=1),
                loss_bbox=loss_bbox.sum() / reduce_mean(weight.sum()).clamp(min=1),
            )
            return self.finished(losses, matched, bbox_preds=boxes)

    def alignment_target(self, matched: Matched, overlaps: Tensor) -> Tensor:
        """Task alignment of each pair, t = s^alpha u^beta, scaled: a ground truth's largest becomes its largest IoU.

        TOOD (arXiv 2108.07755), section 3.2.2. Under a soft plan the two maxima are over the pairs of the ground truth,
        each times its weight in units of the heaviest, so that a pair of hardly any weight does not set the scale.

        Args:
            matched: What :meth:`match` returned.
            overlaps: IoU u of each pair, (K,).

        Returns:
            (K,).
        """
        pairs = matched.pairs
        scores = matched.scores.detach()[pairs.rows, matched.gt_labels]
        alignment = scores**self.alpha * overlaps**self.beta

        def largest(values: Tensor) -> Tensor:
            of_gts = values.new_zeros(matched.num_gts).scatter_reduce(0, pairs.gts, values, 'amax')
            return of_gts[pairs.gts]

        share = pairs.weight / largest(pairs.weight)
        return (alignment / (largest(share * alignment) + 10e-8)).clamp(max=1) * largest(share * overlaps)
