"""Generalized Focal Loss head on the whole plan."""

import logging
from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.ops import act_if
from uotod_mmdet.plan import ROWS, check_loss, classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .dense import DenseHead

CAPPED = 0.1
"""Share of the distances to learn above which a ``reg_max`` that cuts them is worth a warning."""


@MODELS.register_module()
class GFLHead(DenseHead, mmdet.models.dense_heads.GFLHead):
    """mmdet's GFLHead, trained on the whole plan.

    The target of a class in the Quality Focal Loss is the plan's mean of the IoUs of the prediction with the ground
    truths of that class; the box losses are those of the pairs, weighted by the plan and, as in mmdet, by the
    prediction's best score. With a plan of zeros and ones every loss is mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's. ``loss_cls`` must score by a sigmoid, as this head does when it predicts.
    """

    _told_reg_max = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.use_sigmoid_cls:
            raise ValueError(
                f'GFLHead reads scores by a sigmoid when it predicts, but loss_cls={type(self.loss_cls).__name__} is '
                'built without use_sigmoid=True. Losses that fit: QualityFocalLoss (its own), VarifocalLoss, FocalLoss '
                'and CrossEntropyLoss, with use_sigmoid=True.'
            )
        if self.train_cfg:
            bins = self.reg_max + 1
            pred = torch.linspace(-1, 1, ROWS * bins).view(bins, ROWS).t().contiguous()
            target = torch.linspace(0, self.reg_max - 0.1, ROWS)
            check_loss('GFLHead', 'loss_dfl', self.loss_dfl, pred, target, target + 0.5, 'DistributionFocalLoss')

    def _warn_if_capped(self, distances: Tensor, weight: Tensor) -> None:
        """Log, once, how much of the distances (K, 4), in strides, ``reg_max`` cuts off."""
        if self._told_reg_max or not len(distances):
            return
        over = ((distances > self.reg_max).to(weight.dtype).mean(1) * weight).sum() / weight.sum()
        largest = distances.detach().amax()

        def warn() -> None:
            if not self._told_reg_max:
                self._told_reg_max = True
                print_log(
                    f'{type(self).__name__}: {100 * float(over):.0f} % of the distances from priors to the sides of '
                    f'their ground truths are above reg_max={self.reg_max} strides and are learnt as '
                    f'{self.reg_max - 0.1:.1f}, the largest being {float(largest):.1f}: set '
                    f'reg_max={int(largest) + 1} in bbox_head, or add levels of larger strides.',
                    logger='current',
                    level=logging.WARNING,
                )

        act_if(over > CAPPED, warn)

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
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4 * (self.reg_max + 1)))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            corners = self.flatten(bbox_preds, 4 * (self.reg_max + 1))
            strides = self.strides_of(cls_scores, corners)

            def decode(priors: Tensor) -> Tensor:
                distances = self.integral(corners).view(*corners.shape[:2], 4) * strides
                centers = self.anchor_center(priors).expand(len(corners), -1, -1)
                return get_box_tensor(self.bbox_coder.decode(centers, distances))

            matched = self.match(cls_scores, decode, *images)
            pairs = matched.pairs
            pair_corners = corners.flatten(0, 1).index_select(0, pairs.rows)
            # mmdet computes box losses in units of the stride.
            stride = strides[pairs.rows % len(strides)]
            centers = self.anchor_center(matched.priors) / stride
            pred = get_box_tensor(self.bbox_coder.decode(centers, self.integral(pair_corners)))
            target = matched.gt_bboxes / stride
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            self._warn_if_capped(self.bbox_coder.encode(centers, target), pairs.weight)
            target_corners = self.bbox_coder.encode(centers, target, self.reg_max).flatten()

            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: bbox_overlaps(pred.detach(), target, is_aligned=True),
            )
            weight = matched.scores.detach()[pairs.rows].amax(1).sigmoid() * pairs.weight
            loss_bbox = pair_losses(self.loss_bbox, pred, target, weight)
            loss_dfl = self.loss_dfl(
                pair_corners.view(-1, self.reg_max + 1),
                target_corners,
                weight=weight[:, None].expand(-1, 4).flatten(),
                avg_factor=4.0,
            )
            num_pos = reduce_mean(matched.num_pos)
            avg_factor = reduce_mean(weight.sum()).clamp(min=1)
            losses = dict(
                loss_cls=loss_cls.sum() / num_pos,
                loss_bbox=loss_bbox.sum() / avg_factor,
                loss_dfl=loss_dfl / avg_factor,
            )
            return self.finished(losses, matched, bbox_preds=corners)
