"""Localisation losses of the pairs of a plan, gathered from all predictions and ground truths."""

import ctypes
from typing import Any, Optional

import torch
from mmdet.models.losses import GIoULoss, L1Loss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from uotod_mmdet import native

from .pairs import Pairs, pair_losses


def box_losses(
    loss: nn.Module,
    boxes: Tensor,
    gt_bboxes: Tensor,
    pairs: Pairs,
    sizes: Optional[Tensor] = None,
    relative: bool = False,
) -> Tensor:
    """Localisation loss of each pair.

    Args:
        loss: Any box loss of mmdet's contract.
        boxes: Predictions, (B * N, 4), as (x1, y1, x2, y2); with ``sizes`` (cx, cy, w, h) in units of them.
        gt_bboxes: Ground truths (x1, y1, x2, y2), with ``sizes`` in pixels, (B * M, 4).
        pairs: The plan.
        sizes: Width, height, width, height of each image in pixels, (B, 4).
        relative: Whether the loss compares (cx, cy, w, h) in units of ``sizes``, in place of (x1, y1, x2, y2).

    Returns:
        (K,), weights of the pairs and ``loss_weight`` of the loss included.
    """
    known = type(loss) is GIoULoss if not relative else type(loss) is L1Loss
    known = known or (type(loss) is L1Loss and sizes is None)
    constant = not (gt_bboxes.requires_grad or pairs.weight.requires_grad)
    if known and constant and len(pairs.rows) and native.fits(boxes, gt_bboxes, pairs.weight):
        eps = float(loss.eps) if isinstance(loss, GIoULoss) else -1.0
        return _NativeBoxLosses.apply(boxes, gt_bboxes, pairs, sizes, eps, float(loss.loss_weight))
    preds, targets = boxes.index_select(0, pairs.rows), gt_bboxes.index_select(0, pairs.gts)
    if sizes is not None:
        size = sizes[pairs.images]
        if relative:
            targets = bbox_xyxy_to_cxcywh(targets / size)
        else:
            preds = bbox_cxcywh_to_xyxy(preds) * size
    return pair_losses(loss, preds, targets, pairs.weight)


class _Boxes(ctypes.Structure):
    """struct Boxes of csrc/losses.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('preds', 'truths', 'sizes')),
        *((name, ctypes.c_int64) for name in ('rows', 'centred')),
        *((name, ctypes.c_void_p) for name in ('pair_rows', 'pair_truths', 'pair_images', 'weights')),
        ('scale', ctypes.c_double),
        ('pairs', ctypes.c_int64),
    ]


class _NativeBoxLosses(torch.autograd.Function):
    """Weighted L1 (eps < 0) or 1 - GIoU of each pair by csrc/losses.cpp."""

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, gt_bboxes: Tensor, pairs: Pairs, sizes: Optional[Tensor], eps: float, scale: float
    ) -> Tensor:
        ctx.others, ctx.eps = (pairs, sizes, scale), eps
        ctx.save_for_backward(boxes, gt_bboxes)
        losses = boxes.new_empty(len(pairs.rows))
        given = _boxes(boxes, gt_bboxes, pairs, sizes, scale)
        native.call('uotod_box_losses', ctypes.addressof(given), eps, losses)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        boxes, gt_bboxes = ctx.saved_tensors
        gradient = torch.empty_like(boxes)
        given = _boxes(boxes, gt_bboxes, *ctx.others)
        native.call('uotod_box_gradient', ctypes.addressof(given), ctx.eps, grad, grad.stride(0), gradient)
        return gradient, None, None, None, None, None


def _boxes(boxes: Tensor, gt_bboxes: Tensor, pairs: Pairs, sizes: Optional[Tensor], scale: float) -> _Boxes:
    pointers = (tensor.data_ptr() for tensor in (pairs.rows, pairs.gts, pairs.images, pairs.weight))
    sizes_at = None if sizes is None else sizes.data_ptr()
    centred = int(sizes is not None)
    given = boxes.data_ptr(), gt_bboxes.data_ptr(), sizes_at, len(boxes), centred
    return _Boxes(*given, *pointers, scale, len(pairs.rows))
