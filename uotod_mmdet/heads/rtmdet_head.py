"""RTMDet heads on the whole plan."""

from typing import Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, distance2bbox
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .dense import DenseHead, Matched


@MODELS.register_module()
class RTMDetHead(DenseHead, mmdet.models.dense_heads.RTMDetHead):
    """mmdet's RTMDetHead, trained on the whole plan.

    The target of a class in the Quality Focal Loss is the plan's mean of the IoUs of the prediction with the ground
    truths of that class; box losses are those of the pairs, weighted by the plan and, as in mmdet, by the IoU. With a
    plan of zeros and ones every loss is mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    prior_format = 'point'

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
        losses, matched, distances = self.box_losses(cls_scores, bbox_preds, *images)
        return self.finished(losses, matched, bbox_preds=distances)

    def box_losses(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> tuple[dict[str, Tensor], Matched, Tensor]:
        """Losses of classes and boxes, what :meth:`match` returns, and the distances to the sides, (B, N, 4)."""
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            distances = self.flatten(bbox_preds, 4)
            matched = self.match(
                cls_scores,
                lambda priors: distance2bbox(priors.expand(len(distances), -1, -1), distances),
                batch_gt_instances,
                batch_img_metas,
                batch_gt_instances_ignore,
            )
            pairs, target = matched.pairs, matched.gt_bboxes
            pred = distance2bbox(matched.priors, distances.flatten(0, 1).index_select(0, pairs.rows))
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            overlaps = bbox_overlaps(pred.detach(), target, is_aligned=True)
            weight = overlaps * pairs.weight
            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: overlaps,
            )
            loss_bbox = pair_losses(self.loss_bbox, pred, target, weight)
            avg_factor = reduce_mean(weight.sum()).clamp(min=1)
            losses = dict(loss_cls=loss_cls.sum() / avg_factor, loss_bbox=loss_bbox.sum() / avg_factor)
            return losses, matched, distances


@MODELS.register_module()
class RTMDetSepBNHead(mmdet.models.dense_heads.RTMDetSepBNHead, RTMDetHead):
    """mmdet's RTMDetSepBNHead, trained on the whole plan; see :class:`RTMDetHead`."""
