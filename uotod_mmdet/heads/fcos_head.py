"""FCOS head on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.plan import ROWS, check_loss, classification_losses, pair_losses
from uotod_mmdet.registry import MODELS, TASK_UTILS

from .centerness import centerness
from .checks import check_pair_boxes
from .point import PointHead


@MODELS.register_module()
class FCOSHead(PointHead, mmdet.models.dense_heads.FCOSHead):
    """mmdet's FCOSHead with an assigner, trained on the whole plan.

    mmdet's has no assigner but a rule: a point goes to the smallest ground truth that contains the point (or whose
    centre region does) and whose farthest side is in the range of the point's level. Without ``train_cfg.assigner``
    this head follows that rule, and every loss is mmdet's; :func:`geometric_rule` gives the rule as a config, whose
    costs suit other assigners, too. Box losses are those of the pairs, weighted by the plan and, as in mmdet, by the
    centerness, which is 0 outside the ground truth.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's, and ``train_cfg.assigner``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.train_cfg:
            self._check_config()

    def _check_config(self) -> None:
        assigner = dict((self.train_cfg or {}).get('assigner') or self.geometric_rule())
        assigner.pop('_delete_', None)  # of a config that replaces the assigner, of which mmdet's has none
        self.assigner = TASK_UTILS.build(assigner)
        super()._check_config()
        values = torch.linspace(0.1, 0.9, ROWS)
        fitting = 'CrossEntropyLoss with use_sigmoid=True'
        check_loss('FCOSHead', 'loss_centerness', self.loss_centerness, values.flip(0), values, values, fitting)

    def geometric_rule(self) -> dict:
        """Config of an assigner that follows FCOS's rule (arXiv 1904.01355, section 3.2) for this head."""
        radius = self.center_sample_radius if self.center_sampling else None
        return dict(
            type='uotod_mmdet.ClosestTargetAssigner',
            match_costs=[
                dict(type='uotod_mmdet.InsideGTCost', weight=2.0, center_radius=radius),
                dict(type='uotod_mmdet.RegressRangeCost', weight=2.0, **self._ranges()),
                dict(type='uotod_mmdet.GTAreaCost'),  # below 1
            ],
            background_cost=1.5,
            box_source='priors',
            ignore_iof_thr=-1,
            keep_every_gt=False,
        )

    def _ranges(self) -> dict:
        strides = [stride[0] if isinstance(stride, (list, tuple)) else stride for stride in self.strides]
        return dict(regress_ranges=[list(limits) for limits in self.regress_ranges], strides=strides)

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
            distances = self.flatten(bbox_preds, 4)

            def decode(priors: Tensor) -> Tensor:
                scale = priors[:, 2:3] if self.norm_on_bbox else 1
                points = priors[:, :2].expand(len(distances), -1, -1)
                return get_box_tensor(self.bbox_coder.decode(points, distances * scale))

            matched = self.match(cls_scores, decode, *images)
            pairs, points = matched.pairs, matched.priors[:, :2]
            # As in mmdet, box losses are in units of the stride under norm_on_bbox.
            target = self.bbox_coder.encode(points, matched.gt_bboxes)
            if self.norm_on_bbox:
                target = target / matched.priors[:, 2:3]
            target = get_box_tensor(self.bbox_coder.decode(points, target))
            pred = self.bbox_coder.decode(points, distances.flatten(0, 1).index_select(0, pairs.rows))
            pred = get_box_tensor(pred)
            check_pair_boxes(type(self).__name__, target, bbox_preds=pred)
            center_target = centerness(points, matched.gt_bboxes)

            loss_cls = classification_losses(
                self.loss_cls,
                matched.scores,
                matched.gt_labels,
                self.num_classes,
                self.label_weights(pairs),
                lambda: bbox_overlaps(pred.detach(), target, is_aligned=True),
            )
            num_pos = reduce_mean(pairs.weight.sum()).clamp(min=1)
            pred_centerness = self.flatten(centernesses, 1).flatten()[pairs.rows]
            loss_centerness = self.loss_centerness(
                pred_centerness, center_target, weight=pairs.weight, avg_factor=num_pos
            )
            weight = center_target * pairs.weight
            loss_bbox = pair_losses(self.loss_bbox, pred, target, weight)
            losses = dict(
                loss_cls=loss_cls.sum() / num_pos,
                loss_bbox=loss_bbox.sum() / reduce_mean(weight.sum()).clamp(min=1e-6),
                loss_centerness=loss_centerness,
            )
            return self.finished(losses, matched, bbox_preds=distances, centernesses=pred_centerness)
