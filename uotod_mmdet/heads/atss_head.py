"""ATSS head on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import ROWS, check_loss, classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .centerness import centerness
from .checks import check_pair_boxes
from .dense import DenseHead


@MODELS.register_module()
class ATSSHead(DenseHead, mmdet.models.dense_heads.ATSSHead):
    """mmdet's ATSSHead, trained on the whole plan.

    Box losses are those of the pairs, weighted by the plan and, as in mmdet, by the centerness, which is 0 for a
    prior whose centre lies outside the ground truth. With a plan of zeros and ones every loss is mmdet's.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.train_cfg:
            values = torch.linspace(0.1, 0.9, ROWS)
            fitting = 'CrossEntropyLoss with use_sigmoid=True'
            check_loss('ATSSHead', 'loss_centerness', self.loss_centerness, values.flip(0), values, values, fitting)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all levels together, and the plan's statistics; arguments as in mmdet."""
        images = batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4), centernesses=(centernesses, 1))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            deltas = self.flatten(bbox_preds, 4)
            matched = self.match(cls_scores, self.decoder(deltas), *images)
            pairs = matched.pairs
            pred = self.bbox_coder.decode(matched.priors, deltas.flatten(0, 1).index_select(0, pairs.rows))
            pred = get_box_tensor(pred)
            check_pair_boxes(type(self).__name__, matched.gt_bboxes, bbox_preds=pred)
            pred_centerness = self.flatten(centernesses, 1).flatten()[pairs.rows]
            center_target = self.centerness_target(matched.priors, matched.gt_bboxes)

            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: bbox_overlaps(pred.detach(), matched.gt_bboxes, is_aligned=True),
            )
            num_pos = reduce_mean(matched.num_pos)
            loss_centerness = self.loss_centerness(
                pred_centerness, center_target, weight=pairs.weight, avg_factor=num_pos
            )
            weight = center_target * pairs.weight
            loss_bbox = pair_losses(self.loss_bbox, pred, matched.gt_bboxes, weight)
            losses = dict(
                loss_cls=loss_cls.sum() / num_pos,
                loss_bbox=loss_bbox.sum() / reduce_mean(weight.sum()).clamp(min=1),
                loss_centerness=loss_centerness,
            )
            return self.finished(losses, matched, bbox_preds=deltas, centernesses=pred_centerness)

    def centerness_target(self, anchors: Tensor, gts: Tensor) -> Tensor:
        """Centerness of the anchors' centres in their ground truths, 0 outside, (K,)."""
        return centerness((anchors[:, :2] + anchors[:, 2:]) / 2, gts)
