"""Localisation losses of the pairs of a plan, gathered from all predictions and ground truths."""

from typing import Any, Optional

import torch
from mmdet.models.losses import GIoULoss, L1Loss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from uotod_mmdet.ops.native import Kernel

from .pairs import Pairs, pair_losses

_BOXES = (
    'preds: f32[R 4], R, truths: f32[G 4], G, sizes: f32[B 4]?, B, centred: int, pair_rows: i64[K], '
    'pair_truths: i64[K], pair_images: i64[K], weights: f32[K], K, scale: float, eps: float, '
)
BOX_LOSSES = Kernel('uotod_box_losses', _BOXES + 'losses: f32[K]')
BOX_GRADIENT = Kernel('uotod_box_gradient', _BOXES + 'grad: f32[K]~, grad.stride, gradient: f32[R 4]')


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
    if known and constant and len(pairs.rows):
        given = boxes, gt_bboxes, sizes, pairs.rows, pairs.gts, pairs.images, pairs.weight
        if BOX_LOSSES.takes(**dict(zip(_GIVEN, given))):
            eps = float(loss.eps) if isinstance(loss, GIoULoss) else -1.0
            return _CompiledBoxLosses.apply(*given, eps, float(loss.loss_weight))
    preds, targets = boxes.index_select(0, pairs.rows), gt_bboxes.index_select(0, pairs.gts)
    if sizes is not None:
        size = sizes[pairs.images]
        if relative:
            targets = bbox_xyxy_to_cxcywh(targets / size)
        else:
            preds = bbox_cxcywh_to_xyxy(preds) * size
    return pair_losses(loss, preds, targets, pairs.weight)


_GIVEN = ('preds', 'truths', 'sizes', 'pair_rows', 'pair_truths', 'pair_images', 'weights')


class _CompiledBoxLosses(torch.autograd.Function):
    """Weighted L1 (eps < 0) or 1 - GIoU of each pair by csrc/losses.cpp."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *given, eps, scale = arguments
        ctx.numbers = dict(centred=int(given[2] is not None), scale=scale, eps=eps)
        ctx.save_for_backward(*given)
        losses = given[0].new_empty(len(given[3]))
        BOX_LOSSES(**dict(zip(_GIVEN, given)), **ctx.numbers, losses=losses)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        given = ctx.saved_tensors
        gradient = torch.empty_like(given[0])
        BOX_GRADIENT(**dict(zip(_GIVEN, given)), **ctx.numbers, grad=grad.resolve_neg(), gradient=gradient)
        return gradient, *[None] * 8
