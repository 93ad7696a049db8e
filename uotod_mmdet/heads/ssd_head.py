"""SSD head on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.models.losses import CrossEntropyLoss, SmoothL1Loss
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .dense import DenseHead


@MODELS.register_module()
class SSDHead(DenseHead, mmdet.models.dense_heads.SSDHead):
    """mmdet's SSDHead, trained on the whole plan, with hard negative mining on it.

    In each image the predictions of the largest background loss, weighted by the plan, keep it:
    ``train_cfg.neg_pos_ratio`` of them for one prediction's worth of matched mass. With a plan of zeros and ones
    every loss is mmdet's. Unlike mmdet 3.3's own, this head can be evaluated, and in distributed training
    it divides by the mean of the processes' positives, as GFLHead does.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_cls = CrossEntropyLoss(use_sigmoid=False)  # read by mmdet 3.3 in prediction, never set there
        if self.train_cfg:
            self.loss_bbox = SmoothL1Loss(beta=self.train_cfg['smoothl1_beta'])

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all images and levels together, and the plan's statistics; arguments as in mmdet."""
        images = batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            deltas = self.flatten(bbox_preds, 4)
            matched = self.match(cls_scores, self.decoder(deltas), *images)
            pairs = matched.pairs
            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                quality=None,
                num_negatives=(self.train_cfg['neg_pos_ratio'] * pairs.mass).round(),
            )
            pred, target = deltas.flatten(0, 1).index_select(0, pairs.rows), matched.gt_bboxes
            if self.reg_decoded_bbox:
                pred = get_box_tensor(self.bbox_coder.decode(matched.priors, pred))
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            if not self.reg_decoded_bbox:
                target = self.bbox_coder.encode(matched.priors, target)
            loss_bbox = pair_losses(self.loss_bbox, pred, target, pairs.weight)
            num_pos = reduce_mean(matched.num_pos)
            losses = dict(
                loss_cls=loss_cls.sum() / num_pos,
                loss_bbox=loss_bbox.sum() / num_pos,
            )
            return self.finished(losses, matched, bbox_preds=deltas)
