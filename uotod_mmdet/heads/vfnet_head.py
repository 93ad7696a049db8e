"""VarifocalNet head on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import classification_losses, pair_losses, reading_of
from uotod_mmdet.registry import MODELS

from .checks import check_pair_boxes
from .dense import DenseHead


@MODELS.register_module()
class VFNetHead(DenseHead, mmdet.models.dense_heads.VFNetHead):
    """mmdet's VFNetHead, trained on the whole plan.

    The target of a class in the Varifocal Loss is the plan's mean of the IoUs of the refined box with the ground truths
    of that class; box losses are those of the pairs, weighted by the plan and, as in mmdet, by the IoU. Costs see the
    refined boxes. With a plan of zeros and ones every loss is mmdet's, but for predictions on ignored boxes: they take
    no part, where mmdet counts them as background under the Varifocal Loss.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's, without ``use_atss=False``, which uses no assigner.
    """

    plan_bypasses = (*DenseHead.plan_bypasses, 'get_atss_targets', 'get_fcos_targets', 'transform_bbox_targets')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.use_atss:
            raise ValueError(
                'VFNetHead: use_atss=False assigns by the rules of FCOS and uses no assigner: leave it out, or take '
                "mmdet's VFNetHead."
            )
        if self.use_vfl and not reading_of(self.loss_cls).reads_quality:
            raise ValueError(
                f'VFNetHead: with use_vfl=True loss_cls learns the IoU, but {type(self.loss_cls).__name__} takes '
                'labels. Losses that fit: VarifocalLoss (its own) and QualityFocalLoss; or set use_vfl=False and give '
                'the loss as loss_cls_fl.'
            )

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        bbox_preds_refine: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all levels together, and the plan's statistics; arguments as in mmdet."""
        images = batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        self.check_inputs(*images, cls_scores, bbox_preds=(bbox_preds, 4), bbox_preds_refine=(bbox_preds_refine, 4))
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            distances, refined = self.flatten(bbox_preds, 4), self.flatten(bbox_preds_refine, 4)
            sizes = [level.shape[-2:] for level in cls_scores]
            points = torch.cat(self.fcos_prior_generator.grid_priors(sizes, refined.dtype, refined.device))

            matched = self.match(
                cls_scores,
                lambda priors: get_box_tensor(self.bbox_coder.decode(points.expand(len(refined), -1, -1), refined)),
                *images,
            )
            pairs, target = matched.pairs, matched.gt_bboxes
            pair_points = points[pairs.rows % len(points)]
            losses, ious = {}, {}
            for name, loss, argument, values in (
                ('loss_bbox', self.loss_bbox, 'bbox_preds', distances),
                ('loss_bbox_rf', self.loss_bbox_refine, 'bbox_preds_refine', refined),
            ):
                pred = self.bbox_coder.decode(pair_points, values.flatten(0, 1).index_select(0, pairs.rows))
                pred = get_box_tensor(pred)
                check_pair_boxes(type(self).__name__, target, **{argument: pred})
                ious[name] = bbox_overlaps(pred.detach(), target, is_aligned=True).clamp(min=1e-6)
                weight = ious[name] * pairs.weight
                losses[name] = pair_losses(loss, pred, target, weight).sum() / reduce_mean(weight.sum()).clamp(min=1)

            label_pairs = self.label_weights(pairs)
            if self.use_vfl:
                # As in mmdet without weights: priors on the padding count as background, pos_weight has no effect.
                label_pairs = pairs._replace(background=torch.where(matched.inside, pairs.background, 1))
            num_pos = pairs.weight.sum()
            if self.sync_num_pos:
                num_pos = reduce_mean(num_pos)
            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                label_pairs,
                lambda: ious['loss_bbox_rf'],
            )
            losses = dict(loss_cls=loss_cls.sum() / num_pos.clamp(min=1), **losses)
            return self.finished(losses, matched, bbox_preds=distances, bbox_preds_refine=refined)
