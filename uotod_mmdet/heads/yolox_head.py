"""YOLOX head on the whole plan."""

from typing import Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from uotod_mmdet.plan import ROWS, check_classification_loss, classification_losses, pair_losses, sum_by_row
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .point import PointHead


@MODELS.register_module()
class YOLOXHead(PointHead, mmdet.models.dense_heads.YOLOXHead):
    """mmdet's YOLOXHead, trained on the whole plan.

    Objectness is learnt on all predictions: its target is 1 with the weight of the matched mass and 0 with that of the
    background. The losses of classes, whose target is the IoU, and of boxes are those of the pairs, weighted by the
    plan. The assigner gets the square root of class times objectness, as probabilities; match costs read these as
    logits. With a plan of zeros and ones every loss is mmdet's, but for predictions on ignored boxes: they take no
    part, where mmdet learns their objectness as that of the background.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's. The ``reduction`` of the losses has no effect.
    """

    score_format = 'probabilities'
    prior_shift = 0.5  # mmdet matches the centres of the cells, and regresses from their corners

    def _check_config(self) -> None:
        for name in ('loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1'):
            getattr(self, name).reduction = 'mean'  # mmdet's 'sum' is that of its own calls
        super()._check_config()
        check_classification_loss('YOLOXHead', self.loss_obj, 1, 1, 'loss_obj')
        pred = torch.linspace(-1, 1, ROWS * self.num_classes).view(ROWS, self.num_classes)
        try:
            losses = self.loss_cls(pred, pred.sigmoid(), reduction_override='none')
            fits = losses.shape[:1] == (ROWS,)
        except Exception:  # whatever a loss raises for targets that it does not take
            fits = False
        if not fits:
            raise ValueError(
                f'YOLOXHead: loss_cls={type(self.loss_cls).__name__} does not take the IoU as a target of each class, '
                '(N, C). Losses that fit: CrossEntropyLoss, FocalLoss and QualityFocalLoss, with use_sigmoid=True.'
            )

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        objectnesses: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all levels together, and the plan's statistics; arguments as in mmdet."""
        images = batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4), objectnesses=(objectnesses, 1))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            deltas, objectness = self.flatten(bbox_preds, 4), self.flatten(objectnesses, 1)
            scores = self.flatten(cls_scores, self.cls_out_channels).detach().sigmoid()
            corners = torch.cat(
                self.prior_generator.grid_priors(
                    [level.shape[-2:] for level in cls_scores], deltas.dtype, deltas.device, with_stride=True
                )
            )
            matched = self.match(
                cls_scores,
                lambda _: self._bbox_decode(corners, deltas),
                *images,
                matching_scores=(scores * objectness.detach().sigmoid()).sqrt_(),
            )
            pairs, target = matched.pairs, matched.gt_bboxes
            pair_corners, pair_deltas = corners[pairs.rows % len(corners)], deltas.flatten(0, 1)[pairs.rows]
            pred = self._bbox_decode(pair_corners, pair_deltas)
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            overlaps = bbox_overlaps(pred.detach(), target, is_aligned=True)

            loss_obj = classification_losses(
                self.loss_obj,
                objectness.flatten(0, 1),
                torch.zeros_like(matched.gt_labels),
                1,
                pairs,
                lambda: torch.ones_like(overlaps),
            )
            cls_target = functional.one_hot(matched.gt_labels, self.num_classes) * overlaps[:, None]
            loss_cls = self.loss_cls(matched.scores[pairs.rows], cls_target, reduction_override='none')
            losses = dict(
                loss_cls=(sum_by_row(loss_cls) * pairs.weight).sum(),
                loss_bbox=pair_losses(self.loss_bbox, pred, target, pairs.weight).sum(),
                loss_obj=loss_obj.sum(),
            )
            if self.use_l1:
                l1_target = self._get_l1_target(torch.zeros_like(target), target, pair_corners)
                losses['loss_l1'] = pair_losses(self.loss_l1, pair_deltas, l1_target, pairs.weight).sum()
            num_pos = reduce_mean(pairs.weight.sum()).clamp(min=1)
            losses = {name: loss / num_pos for name, loss in losses.items()}
            return self.finished(losses, matched, bbox_preds=deltas, objectnesses=objectness)
