"""Grounding DINO head on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.models.losses import QualityFocalLoss
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import Batch, token_maps
from uotod_mmdet.ops import act_if
from uotod_mmdet.plan import ROWS, Pairs, check_loss, text_token_losses
from uotod_mmdet.registry import MODELS

from .detr_heads import DETRHead, DINOHead

NO_TOKEN = -1e4
"""Score of a token outside the text, whose probability and loss are 0; mmdet's is -inf, with which 0 * loss is NaN."""


@MODELS.register_module()
class GroundingDINOHead(mmdet.models.dense_heads.GroundingDINOHead, DINOHead):
    """mmdet's GroundingDINOHead, trained on the whole plan; see :class:`DETRHead`.

    Scores are those of the tokens of a text. The classification target of a pair is the token map of its ground truth
    (``positive_maps``), the background's is 0 for all tokens, and the plan weighs these targets. Tokens outside an
    image's text have no loss, as in mmdet. The denoising part is mmdet's.

    ``loss_cls`` must be a loss of single entries: FocalLoss, VarifocalLoss or CrossEntropyLoss, with
    ``use_sigmoid=True``. A match cost that reads scores must read those of tokens: BinaryFocalLossCost.
    """

    text_masks: Tensor  # (B, tokens) True on the tokens of each image's text; mmdet's loss() keeps it here
    loss_by_feat_single = DETRHead.loss_by_feat_single

    @property
    def score_columns(self) -> int:
        """Columns of the scores: the largest number of tokens of a text."""
        return self.max_text_len

    def _check_loss_cls(self) -> None:
        fitting = 'FocalLoss, VarifocalLoss and CrossEntropyLoss, with use_sigmoid=True'
        if isinstance(self.loss_cls, QualityFocalLoss):
            raise ValueError(
                f'{type(self).__name__}: loss_cls={type(self.loss_cls).__name__} learns the IoU of a class, and this '
                f'head has tokens in place of classes. Losses that fit: {fitting}.'
            )
        pred, weight = torch.linspace(-1, 1, ROWS), torch.linspace(0.5, 1.5, ROWS)
        check_loss(type(self).__name__, 'loss_cls', self.loss_cls, pred, torch.arange(ROWS) % 2.0, weight, fitting)

    def loss_dn(self, all_layers_denoising_cls_scores: Tensor, *args: Any, **kwargs: Any) -> tuple[list[Tensor], ...]:
        """mmdet's losses of the denoising part, refused where they are not finite."""
        return super().loss_dn(self._only_text(all_layers_denoising_cls_scores), *args, **kwargs)

    def _layer_losses(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
        pred_mask: Optional[Tensor] = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        scores = self._only_text(cls_scores)
        self._check_token_maps(batch_gt_instances)
        return super()._layer_losses(
            scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore, pred_mask
        )

    def _only_text(self, scores: Tensor) -> Tensor:
        """Scores (L, B, N, T) that are finite on tokens outside the text."""
        masks = getattr(self, 'text_masks', None)
        images = scores.size(1) if isinstance(scores, Tensor) and scores.dim() == 4 else None
        fits = isinstance(masks, Tensor) and masks.dim() == 2 and masks.size(1) <= self.max_text_len
        if not isinstance(masks, Tensor) or not fits or images not in (None, len(masks)):
            came = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise ValueError(
                f'{type(self).__name__}: text_masks must be (images, tokens), here ({images}, at most '
                f'{self.max_text_len}), True on the tokens of the text of each image, got '
                f"{'none' if masks is None else came}. Its loss() takes them as text_token_mask from mmdet's "
                'GroundingDINO; who calls loss_by_feat sets head.text_masks before. max_text_len of contrastive_cfg '
                'must be that of the language model, max_tokens.'
            )
        if images is None or scores.size(3) != self.max_text_len:
            return scores  # refused later
        outside = scores.new_ones(images, self.max_text_len, dtype=torch.bool)
        outside[:, : masks.size(1)] = masks == 0
        return scores.masked_fill(outside[:, None], NO_TOKEN)

    def _check_token_maps(self, batch_gt_instances: list[InstanceData]) -> None:
        """Check that each ground truth has tokens in the text of its image."""
        for index, gt in enumerate(batch_gt_instances):
            maps, expected = gt.get('positive_maps'), (len(gt), self.max_text_len)
            name = f'{type(self).__name__}: batch_gt_instances[{index}].positive_maps'
            if not isinstance(maps, Tensor) or maps.shape != expected:
                came = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
                raise ValueError(
                    f'{name} must have shape {expected}, the tokens of each ground truth, got '
                    f"{'none' if maps is None else came}. mmdet's GroundingDINO makes it from the text prompt: take "
                    "model=dict(type='GroundingDINO') around this head, and contrastive_cfg with the max_text_len of "
                    'all its heads.'
                )
            text = self.text_masks[index] > 0
            found = (maps[:, : len(text)] * text).any(1)

            def complain(found: Tensor = found, gt: InstanceData = gt, name: str = name) -> None:
                missing = (~found).nonzero()[:, 0]
                raise ValueError(
                    f'{name} is 0 for {len(missing)} of {len(gt)} ground truths, the first of label '
                    f'{gt.labels[missing[0]].item()}: the text prompt lacks their class, or ends before it. Give the '
                    "data set's metainfo.classes all classes of the annotations, in their order, and keep the prompt "
                    f'within max_text_len={self.max_text_len} tokens.'
                )

            act_if(~found.all(), complain)

    def _copies_rows(self) -> bool:
        return True  # the scores of the tokens of its ground truth

    def _classification(self, scores: Tensor, batch: Batch, pairs: Pairs) -> Tensor:
        """Loss of the tokens of each prediction, (B * N,)."""
        masks = self.text_masks > 0
        layers = pairs.num_images // len(masks)
        maps, _ = token_maps(batch.gt_instances)
        return text_token_losses(self.loss_cls, scores, maps, masks.repeat(layers, 1), pairs)
