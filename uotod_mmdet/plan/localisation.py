"""Localisation losses of the pairs of a plan."""

from typing import Optional

from mmdet.models.losses import GIoULoss, L1Loss, SmoothL1Loss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from uotod_mmdet.ops import gathered_box_losses, giou_losses

from .classification import sum_by_row
from .pairs import Pairs


def box_losses(
    loss: nn.Module,
    boxes: Tensor,
    gt_bboxes: Tensor,
    pairs: Pairs,
    sizes: Optional[Tensor] = None,
    relative: bool = False,
) -> Tensor:
    """Localisation loss of each pair, its boxes gathered from all predictions and ground truths.

    Args:
        loss: Any box loss of mmdet's contract.
        boxes: Predictions, (B * N, 4), as (x1, y1, x2, y2); with ``sizes`` (cx, cy, w, h) in units of the sizes.
        gt_bboxes: Ground truths (x1, y1, x2, y2), with ``sizes`` in pixels, (B * M, 4).
        pairs: The plan.
        sizes: Width, height, width, height of each image in pixels, (B, 4).
        relative: Whether the loss compares (cx, cy, w, h) in units of ``sizes``, in place of (x1, y1, x2, y2).

    Returns:
        (K,), weights of the pairs and ``loss_weight`` of the loss included.
    """
    l1 = type(loss) is L1Loss and (relative or sizes is None)
    if len(pairs.rows) and (l1 or (type(loss) is GIoULoss and not relative)):
        places = pairs.rows, pairs.gts, pairs.images, pairs.weight
        eps = None if l1 else loss.eps
        return gathered_box_losses(boxes, gt_bboxes, sizes, *places, loss.loss_weight, eps)  # type: ignore[arg-type]
    preds, targets = boxes.index_select(0, pairs.rows), gt_bboxes.index_select(0, pairs.gts)
    if sizes is not None:
        size = sizes[pairs.images]
        if relative:
            targets = bbox_xyxy_to_cxcywh(targets / size)
        else:
            preds = bbox_cxcywh_to_xyxy(preds) * size
    return pair_losses(loss, preds, targets, pairs.weight)


def pair_losses(loss: nn.Module, pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Localisation loss of each pair.

    Args:
        loss: Any box loss of mmdet's contract.
        pred: Predicted boxes (or deltas) of the pairs, (K, 4).
        target: Their ground truths in the same form, (K, 4).
        weight: (K,).

    Returns:
        (K,), ``loss_weight`` of the loss included.
    """
    if not len(pred):  # some losses of mmdet give a scalar then
        return (pred + target).sum(1) * 0
    if type(loss) is GIoULoss and not target.requires_grad:
        losses = giou_losses(pred, target, loss.eps)  # type: ignore[arg-type]
        return loss.loss_weight * weight * losses  # type: ignore[operator]
    if type(loss) in (L1Loss, SmoothL1Loss):  # one weight for the four coordinates
        return weight * sum_by_row(loss(pred, target, reduction_override='none'))
    return sum_by_row(loss(pred, target, weight[:, None].expand_as(pred), reduction_override='none'))
