"""Priors of dense heads: anchors, or points with strides."""

import torch
from torch import Tensor

PRIOR_FORMATS = ('auto', 'anchor', 'point')


def prior_centers_and_sizes(priors: Tensor, prior_format: str = 'auto') -> tuple[Tensor, Tensor]:
    """Centres and units of length of a dense head's priors.

    Args:
        priors: Anchors (x1, y1, x2, y2) or points (x, y, stride_x, stride_y), pixels, (..., N, 4).
        prior_format: 'anchor', 'point', or 'auto': points if the last two columns are equal in every row, which
            does not occur in a grid of anchors.

    Returns:
        Centres (..., N, 2) and units (..., N, 2), pixels: an anchor's width and height, a point's strides.
    """
    first, second = priors[..., :2], priors[..., 2:]
    if prior_format == 'point':
        return first, second
    centers, sizes = (first + second) / 2, second - first
    if prior_format == 'auto' and priors.size(-2) > 1:
        points = (priors[..., 2] == priors[..., 3]).all()
        return torch.where(points, first, centers), torch.where(points, second, sizes)
    return centers, sizes


def prior_boxes(priors: Tensor, prior_format: str = 'auto') -> Tensor:
    """Priors as boxes (x1, y1, x2, y2), pixels, (..., N, 4): a point becomes the square of one stride around it."""
    centers, sizes = prior_centers_and_sizes(priors, prior_format)
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
