"""Centerness, by which FCOS, ATSS and TOOD weigh their box losses."""

import torch
from torch import Tensor


def centerness(centers: Tensor, gts: Tensor) -> Tensor:
    """Centerness of points in their ground truths, 0 outside; FCOS (arXiv 1904.01355), equation 3.

    Args:
        centers: Points (x, y), pixels, (K, 2).
        gts: Their ground truths (x1, y1, x2, y2), pixels, (K, 4).

    Returns:
        (K,).
    """
    before, after = centers - gts[:, :2], gts[:, 2:] - centers
    ratio = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after)
    return ratio.prod(1).sqrt()
