"""RTMDet-Ins heads on the whole plan."""

from typing import Any, Optional

import mmdet.models.dense_heads
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from uotod_mmdet.plan import ROWS, Pairs, check_loss
from uotod_mmdet.registry import MODELS

from .rtmdet_head import RTMDetHead


@MODELS.register_module()
class RTMDetInsHead(mmdet.models.dense_heads.RTMDetInsHead, RTMDetHead):
    """mmdet's RTMDetInsHead, trained on the whole plan; see :class:`RTMDetHead`.

    The mask loss is that of the pairs, weighted by the plan. A mask is computed for each pair, so that ``min_weight``
    is also a matter of memory. With a plan of zeros and ones every loss is mmdet's where the images of a batch have one
    size; where they do not, mmdet 3.3 takes the kernels of other predictions, for it counts those on padding out.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    plan_bypasses = (*RTMDetHead.plan_bypasses, 'loss_mask_by_feat')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pred = torch.linspace(-2, 2, ROWS * 16).view(ROWS, 4, 4)
        weight, fitting = torch.linspace(0.5, 1.5, ROWS), 'DiceLoss'
        check_loss(type(self).__name__, 'loss_mask', self.loss_mask, pred, (pred.flip(0) > 0).float(), weight, fitting)

    def loss_by_feat(  # type: ignore[override]
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        kernel_preds: list[Tensor],
        mask_feat: Tensor,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Optional[list[InstanceData]] = None,
    ) -> dict[str, Tensor]:
        """Losses of all levels together, and the plan's statistics; arguments as in mmdet.

        Raises:
            ValueError: If ground truths have no masks, or masks of another size than the batch of images.
        """
        self.check_inputs(
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore,
            cls_scores,
            bbox_preds=(bbox_preds, 4),
            kernel_preds=(kernel_preds, self.num_gen_params),
        )
        stride = self.prior_generator.strides[0]
        size = mask_feat.size(2) * stride[1], mask_feat.size(3) * stride[0]
        images = [_with_masks(gts, index, size, mask_feat.device) for index, gts in enumerate(batch_gt_instances)]
        losses, matched, distances = self.box_losses(
            cls_scores, bbox_preds, images, batch_img_metas, batch_gt_instances_ignore
        )
        kernels = self.flatten(kernel_preds, self.num_gen_params)
        with torch.autocast(mask_feat.device.type, enabled=False):
            losses['loss_mask'] = self.mask_loss(mask_feat.float(), kernels, matched.pairs, matched.priors, images)
        return self.finished(losses, matched, bbox_preds=distances, kernel_preds=kernels, mask_feat=mask_feat)

    def mask_loss(
        self, mask_feat: Tensor, kernels: Tensor, pairs: Pairs, priors: Tensor, images: list[InstanceData]
    ) -> Tensor:
        """Mask loss of the pairs, divided by their mass.

        Args:
            mask_feat: Prototypes of all images, (B, P, H, W).
            kernels: Parameters of the dynamic convolutions of all predictions, (B, N, D).
            pairs: The plan.
            priors: Point and strides of each pair, (K, 4).
            images: Ground truths, with masks (M_i, H_p, W_p) of the padded images.
        """
        num_pos = reduce_mean(pairs.weight.sum()).clamp(min=1)
        if not len(pairs.rows):
            return mask_feat.sum() * 0 + kernels.sum() * 0
        num_gts = max(map(len, images))
        pair_kernels = kernels.flatten(0, 1).index_select(0, pairs.rows)
        logits, targets = [], []
        for index, gts in enumerate(images):
            its = (pairs.images == index).nonzero().squeeze(1)
            if len(its):
                logits.append(self._mask_predict_by_feat_single(mask_feat[index], pair_kernels[its], priors[its]))
                half = self.mask_loss_stride // 2
                masks = gts.masks[:, half :: self.mask_loss_stride, half :: self.mask_loss_stride]
                targets.append(masks[pairs.gts[its] - index * num_gts])
        scale = self.prior_generator.strides[0][0] // self.mask_loss_stride
        joint = functional.interpolate(torch.cat(logits)[None], scale_factor=scale, mode='bilinear')[0]
        return self.loss_mask(joint, torch.cat(targets), weight=pairs.weight, avg_factor=num_pos)


@MODELS.register_module()
class RTMDetInsSepBNHead(mmdet.models.dense_heads.RTMDetInsSepBNHead, RTMDetInsHead):
    """mmdet's RTMDetInsSepBNHead, trained on the whole plan; see :class:`RTMDetInsHead`."""


def _with_masks(gts: InstanceData, index: int, size: tuple[int, int], device: torch.device) -> InstanceData:
    """The ground truths of an image with masks as bool tensors, (M, H, W)."""
    masks: Any = gts.get('masks')
    if isinstance(masks, (BitmapMasks, PolygonMasks)):
        masks = masks.to_tensor(dtype=torch.bool, device=device)
    if not isinstance(masks, Tensor) or masks.shape != (len(gts), *size):
        came = tuple(masks.shape) if isinstance(masks, Tensor) else 'none' if masks is None else type(masks).__name__
        raise ValueError(
            f'batch_gt_instances.masks of image {index} must have shape (M, H, W), here {(len(gts), *size)}, the size '
            f"of the padded images, got {came}: load them with dict(type='LoadAnnotations', with_mask=True), and let "
            "the model's DetDataPreprocessor pad them (pad_mask=True)."
        )
    return InstanceData(**{**dict(gts.items()), 'masks': masks.bool()})
