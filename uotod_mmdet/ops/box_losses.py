"""L1 distance and 1 - GIoU of weighted pairs of boxes, gathered from all predictions and ground truths, as an op."""

from typing import Any, Optional

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor

from .deferred import is_transformed
from .giou import giou_and_slopes, giou_losses
from .native import Kernel
from .registration import Op

KERNEL = Kernel(
    'uotod_box_losses',
    'preds: f32[R 4], R, truths: f32[G 4], G, sizes: f32[B 4]?, B, pair_rows: i64[K], '
    'pair_truths: i64[K], pair_images: i64[K], weights: f32[K], K, scale: float, eps: float, losses: f32[K]?, '
    'grad: f32[K]?~, grad.stride, gradient: f32[R 4]?',
)
_TENSORS = ('preds', 'truths', 'sizes', 'pair_rows', 'pair_truths', 'pair_images', 'weights')


def gathered_box_losses(
    preds: Tensor,
    truths: Tensor,
    sizes: Optional[Tensor],
    rows: Tensor,
    gts: Tensor,
    images: Tensor,
    weights: Tensor,
    scale: float,
    eps: Optional[float],
) -> Tensor:
    """``scale * weights`` times the loss of each pair.

    Args:
        preds: Predictions, (R, 4), as (x1, y1, x2, y2); with ``sizes`` (cx, cy, w, h) in units of the sizes.
        truths: Ground truths (x1, y1, x2, y2), with ``sizes`` in pixels, (G, 4); they get no gradient.
        sizes: Width, height, width, height of each image in pixels, (B, 4), or None.
        rows: Prediction of each pair, ascending, (K,).
        gts: Ground truth of each pair, (K,).
        images: Image of each pair, (K,).
        weights: Weight of each pair, (K,).
        scale: Factor of all losses.
        eps: Smallest area by which 1 - GIoU, of (x1, y1, x2, y2), divides. None: L1 distance, with ``sizes`` of
            (cx, cy, w, h) in units of the sizes.

    Returns:
        (K,).
    """
    eps = -1.0 if eps is None else float(eps)
    learnt = torch.is_grad_enabled() and (weights.requires_grad or truths.requires_grad)
    if learnt or is_transformed():
        return _reference(preds, truths, sizes, rows, gts, images, weights, float(scale), eps)
    return box_losses_op(preds, truths, sizes, rows, gts, images, weights, float(scale), eps)


@Op
def box_losses_op(
    preds: Tensor,
    truths: Tensor,
    sizes: Optional[Tensor],
    rows: Tensor,
    gts: Tensor,
    images: Tensor,
    weights: Tensor,
    scale: float,
    eps: float,
) -> Tensor:
    """:func:`gathered_box_losses`; a negative ``eps`` means the L1 distance."""
    given = dict(zip(_TENSORS, (preds, truths, sizes, rows, gts, images, weights)))
    run = KERNEL.bind(**given)
    if run is not None:
        losses = torch.empty_like(weights)
        run(scale=scale, eps=eps, losses=losses, grad=None, gradient=None)
        return losses
    return _reference(preds, truths, sizes, rows, gts, images, weights, scale, eps)


@Op
def box_losses_gradient_op(
    preds: Tensor,
    truths: Tensor,
    sizes: Optional[Tensor],
    rows: Tensor,
    gts: Tensor,
    images: Tensor,
    weights: Tensor,
    scale: float,
    eps: float,
    grad: Tensor,
) -> Tensor:
    """Gradient of the sum of losses times ``grad`` (K,) by the predictions, (R, 4)."""
    given = dict(zip(_TENSORS, (preds, truths, sizes, rows, gts, images, weights)), grad=grad)
    run = KERNEL.bind(**given)
    if run is not None:
        gradient = torch.empty_like(preds)
        run(scale=scale, eps=eps, losses=None, gradient=gradient)
        return gradient
    pred, truth = preds.index_select(0, rows), truths.index_select(0, gts)
    if eps < 0:
        truth = truth if sizes is None else bbox_xyxy_to_cxcywh(truth / sizes[images])
        slopes = (pred - truth).sign()
    else:
        size = None if sizes is None else sizes[images]
        _, found = giou_and_slopes(pred if size is None else bbox_cxcywh_to_xyxy(pred) * size, truth, eps)
        assert found is not None
        slopes = found
        if size is not None:
            low, high = (slopes * size).split(2, dim=1)
            slopes = torch.cat([low + high, (high - low) / 2], 1)
    gradients = slopes * (scale * weights * grad)[:, None]  # of the widest dtype
    return torch.zeros_like(preds).index_add_(0, rows, gradients.to(preds.dtype))


def _reference(
    preds: Tensor,
    truths: Tensor,
    sizes: Optional[Tensor],
    rows: Tensor,
    gts: Tensor,
    images: Tensor,
    weights: Tensor,
    scale: float,
    eps: float,
) -> Tensor:
    pred, truth = preds.index_select(0, rows), truths.index_select(0, gts)
    if eps < 0:
        if sizes is not None:
            truth = bbox_xyxy_to_cxcywh(truth / sizes[images])
        return scale * weights * (pred - truth).abs().sum(1)
    if sizes is not None:
        pred = bbox_cxcywh_to_xyxy(pred) * sizes[images]
    return scale * weights * giou_losses(pred, truth, eps)


def _losses_like(preds: Tensor, truths: Tensor, *others: Any) -> Tensor:
    weights = others[4]
    return weights.new_empty(weights.shape, dtype=(preds[:0, 0] * truths[:0, 0] * weights[:0]).dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return box_losses_gradient_op(*ctx.saved_tensors, ctx.scale, ctx.eps, grad.resolve_neg()), *[None] * 8


box_losses_op.register_fake(_losses_like)
box_losses_gradient_op.register_fake(lambda *inputs: torch.empty_like(inputs[0]))
box_losses_op.register_autograd(_backward, _save)
