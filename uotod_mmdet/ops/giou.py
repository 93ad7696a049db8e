"""GIoU loss of pairs of boxes, its gradient computed along with it."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .deferred import is_transformed


def giou_losses(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - GIoU of each pair, what mmdet's GIoULoss computes, in fewer passes.

    Args:
        pred: Predicted boxes (x1, y1, x2, y2), (K, 4).
        target: Ground truths in the same form, which get no gradient, (K, 4).
        eps: Smallest area to divide by.

    Returns:
        (K,).
    """
    if is_transformed():
        return giou_and_slopes(pred, target, eps, with_slopes=False)[0]
    return _GIoULosses.apply(pred, target, eps)


class _GIoULosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, eps: float) -> Tensor:
        losses, slopes = giou_and_slopes(pred, target, eps, ctx.needs_input_grad[0])
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (slopes,) = ctx.saved_tensors
        return slopes * grad[:, None], None, None


def giou_and_slopes(
    pred: Tensor, target: Tensor, eps: float, with_slopes: bool = True
) -> tuple[Tensor, Optional[Tensor]]:
    """1 - GIoU of each pair (K,), and if asked for its gradient by the predicted boxes (K, 4)."""
    low, high, gt_low, gt_high = (  # of both axes, (2, K)
        corners.t().contiguous() for corners in (pred[:, :2], pred[:, 2:], target[:, :2], target[:, 2:])
    )
    side, gt_side = high - low, gt_high - gt_low
    shared = torch.minimum(high, gt_high).sub_(torch.maximum(low, gt_low))  # negative where they do not overlap
    hull_side = (side + gt_side).sub_(shared).clamp_(min=0)
    inside = (shared >= 0).to(pred.dtype)
    shared = shared.clamp_(min=0)
    overlap, raw_hull = shared[0] * shared[1], hull_side[0] * hull_side[1]
    hull = raw_hull.clamp(min=eps)
    raw_union = side[0] * side[1] + gt_side[0] * gt_side[1] - overlap
    union = raw_union.clamp(min=eps)
    losses = 2 - overlap / union - union / hull
    if not with_slopes:
        return losses, None
    by_union = torch.where(raw_union > eps, overlap / union.square() - 1 / hull, 0)
    by_overlap = -1 / union - by_union  # of the overlap itself, and by way of the union
    by_hull = torch.where(raw_hull > eps, union / hull.square(), 0)
    other, shared_other, hull_other = side.flip(0), shared.flip(0), hull_side.flip(0)
    # Half a slope where two corners coincide, as autograd has it.
    at_high, at_low = _first_is_less(high, gt_high), _first_is_less(gt_low, low)
    area = by_union * other
    slope = by_overlap * shared_other * inside
    hull_slope = by_hull * hull_other
    by_high = area + slope * at_high + hull_slope * (1 - at_high)
    by_low = -(area + slope * at_low + hull_slope * (1 - at_low))
    return losses, torch.cat([by_low, by_high]).t()


def _first_is_less(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first is less, 0 where it is not, and 1/2 where both are equal."""
    return (first < second).to(first.dtype).add_((first == second).to(first.dtype), alpha=0.5)
