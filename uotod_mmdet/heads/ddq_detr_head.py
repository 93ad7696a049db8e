"""DDQ DETR head on the whole plan."""

from typing import Optional

import mmdet.models.dense_heads
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.registry import MODELS

from .detr_heads import DETRHead, DINOHead, named_losses


@MODELS.register_module()
class DDQDETRHead(mmdet.models.dense_heads.DDQDETRHead, DINOHead):
    """mmdet's DDQDETRHead, trained on the whole plan; see :class:`DETRHead`.

    The plan weighs the losses of the distinct queries of all decoder layers and of the encoder's proposals. Queries
    that a layer's distinct query selection left out take no part, as in mmdet. The auxiliary branch of dense queries
    (DDQAuxLoss, one-to-many by TopkHungarianAssigner) and the denoising part are mmdet's.
    """

    plan_methods = ('loss_by_feat', 'loss_for_distinct_queries', 'loss_by_feat_single')
    plan_bypasses = (*DETRHead.plan_bypasses, '_loss_for_distinct_queries_single')

    def loss_for_distinct_queries(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of the distinct queries of all decoder layers, and the plan's statistics.

        Args:
            all_layers_cls_scores: (L, B, N, C), without denoising and dense queries.
            all_layers_bbox_preds: (L, B, N, 4) as (cx, cy, w, h), relative to the image.
            batch_gt_instances: ``bboxes`` (M, 4) pixels and ``labels`` (M,) of each image.
            batch_img_metas: ``img_shape`` of each image.
            batch_gt_instances_ignore: Ignored boxes of each image; DDQ DETR passes none.
        """
        losses, statistics = self._layer_losses(
            all_layers_cls_scores,
            all_layers_bbox_preds,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore,
            self._distinct(all_layers_cls_scores),
        )
        return {**named_losses(losses), **statistics}

    def _distinct(self, scores: Tensor) -> Tensor:
        """False on queries that the selection left out, (L, B, N); the first layer has all."""
        layers, images, queries = scores.shape[:3]
        cache = getattr(self, 'cache_dict', {})
        selected, heads = cache.get('distinct_query_mask'), cache.get('num_heads')
        if selected is None or heads is None or len(selected) < layers - 1:
            raise ValueError(
                f'{type(self).__name__}: cache_dict must hold distinct_query_mask, the selection of each of the '
                f"{layers - 1} decoder layers after the first, and num_heads; got {sorted(cache)}. mmdet's DDQDETR and "
                "its decoder write them: take model=dict(type='DDQDETR') around this head."
            )
        mask = scores.new_ones(layers, images, queries, dtype=torch.bool)
        for layer, attention in enumerate(selected[: layers - 1], start=1):
            mask[layer] = attention[::heads, 0]  # (B * heads, N, N); each row is the same
        return mask
