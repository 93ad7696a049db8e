"""Overlaps of all predictions with all ground truths."""

import torch
from torch import Tensor


def pairwise_overlaps(bboxes: Tensor, gt_bboxes: Tensor, mode: str = 'iou', eps: float = 1e-6) -> Tensor:
    """mmdet's ``bbox_overlaps`` of every box with every ground truth, several times faster.

    It works on one coordinate at a time, so that no temporary is larger than the result.

    Args:
        bboxes: Boxes (x1, y1, x2, y2), (..., N, 4).
        gt_bboxes: Ground truths in the same form, (..., M, 4).
        mode: 'iou' or 'giou'.
        eps: Least area that is divided by.

    Returns:
        (..., N, M).
    """
    x1, y1, x2, y2 = bboxes[..., :, None, :].unbind(-1)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_bboxes[..., None, :, :].unbind(-1)
    overlap = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1)).clamp_(min=0)
    overlap.mul_(torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1)).clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (gt_x2 - gt_x1) * (gt_y2 - gt_y1)).sub_(overlap).clamp_(min=eps)
    overlaps = overlap.div_(union)
    if mode == 'iou':
        return overlaps
    hull = torch.maximum(x2, gt_x2).sub_(torch.minimum(x1, gt_x1)).clamp_(min=0)
    hull.mul_(torch.maximum(y2, gt_y2).sub_(torch.minimum(y1, gt_y1)).clamp_(min=0)).clamp_(min=eps)
    return overlaps.sub_(union.sub_(hull).neg_().div_(hull))
