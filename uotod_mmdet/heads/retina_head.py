"""RetinaNet head on the whole plan."""

from typing import Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import classification_losses, pair_losses
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .dense import DenseHead


@MODELS.register_module()
class RetinaHead(DenseHead, mmdet.models.dense_heads.RetinaHead):
    """mmdet's RetinaHead, trained on the whole plan. With a plan of zeros and ones every loss is mmdet's.

    In distributed training mmdet divides by each process's own count of positives, ours by their mean, as GFLHead does.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

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
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, self.bbox_coder.encode_size))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            deltas = self.flatten(bbox_preds, self.bbox_coder.encode_size)
            matched = self.match(cls_scores, self.decoder(deltas), *images)
            pairs = matched.pairs
            pred, target = deltas.flatten(0, 1).index_select(0, pairs.rows), matched.gt_bboxes
            boxes = get_box_tensor(self.bbox_coder.decode(matched.priors, pred))
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred, **{'bbox_preds, decoded,': boxes})
            if self.reg_decoded_bbox:
                pred = boxes
            else:
                target = self.bbox_coder.encode(matched.priors, target)
            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: bbox_overlaps(boxes.detach(), matched.gt_bboxes, is_aligned=True),
            )
            loss_bbox = pair_losses(self.loss_bbox, pred, target, pairs.weight)
            num_pos = reduce_mean(matched.num_pos)
            losses = dict(
                loss_cls=loss_cls.sum() / num_pos,
                loss_bbox=loss_bbox.sum() / num_pos,
            )
            return self.finished(losses, matched, bbox_preds=deltas)
