"""Overlaps of all predictions with all ground truths."""

import torch
from torch import Tensor


def pairwise_overlaps(bboxes: Tensor, gt_bboxes: Tensor, mode: str = 'iou', eps: float = 1e-6) -> Tensor:
    """mmdet's ``bbox_overlaps`` of every box with every ground truth, several times faster.

    The function works on one coordinate at a time, so that no temporary is larger than the result.

    Args:
        bboxes: Boxes (x1, y1, x2, y2), (..., N, 4).
        gt_bboxes: Ground truths in the same form, (..., M, 4).
        mode: 'iou' or 'giou'.
        eps: Smallest area to divide by.

    Returns:
        (..., N, M).
    """
    x1, y1, x2, y2 = bboxes[..., :, None, :].unbind(-1)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_bboxes[..., None, :, :].unbind(-1)
    width = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1))  # of the overlap, negative where there is none
    height = torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1))
    if mode == 'giou':  # max(x2, gt_x2) - min(x1, gt_x1) is the sum of the widths less that of the overlap
        hull = ((x2 - x1) + (gt_x2 - gt_x1)).sub_(width).clamp_(min=0)
        hull.mul_(((y2 - y1) + (gt_y2 - gt_y1)).sub_(height).clamp_(min=0)).clamp_(min=eps)
    overlaps = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (gt_x2 - gt_x1) * (gt_y2 - gt_y1)).sub_(overlaps).clamp_(min=eps)
    overlaps.div_(union)
    return overlaps if mode == 'iou' else overlaps.add_(union.div_(hull)).sub_(1)
