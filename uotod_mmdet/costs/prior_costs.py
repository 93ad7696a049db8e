"""Match costs that compare a dense head's priors with the ground truths."""

from typing import Optional

import torch
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import pairwise_overlaps
from uotod_mmdet.registry import TASK_UTILS

from .batch import Batch
from .boxes import float_boxes
from .priors import PRIOR_FORMATS, prior_centers_and_sizes

NEEDS = 'priors', 'gt_bboxes'


class PriorCost(BaseMatchCost):
    """Base of the costs of priors. A subclass implements :meth:`cost`, for one image or a batch."""

    def __init__(self, weight: float, prior_format: str) -> None:
        if prior_format not in PRIOR_FORMATS:
            raise ValueError(f'prior_format must be one of {PRIOR_FORMATS}, got {prior_format!r}')
        super().__init__(number('weight', weight))
        self.prior_format = prior_format

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'auto') -> Tensor:
        """Cost (..., N, M) of priors (..., N, 4) and ground truths (..., M, 4), pixels.

        ``prior_format`` is the head's; the cost's own format takes precedence unless it is 'auto'.
        """
        raise NotImplementedError

    def of_batch(self, batch: Batch) -> Tensor:
        """Cost of a batch, (B, N, M)."""
        assert batch.priors is not None and batch.gt_bboxes is not None  # NEEDS
        return self.cost(batch.priors, batch.gt_bboxes, batch.prior_format)

    def centers_and_sizes(self, priors: Tensor, prior_format: str) -> tuple[Tensor, Tensor]:
        """Centres and units of length of the priors; see :func:`prior_centers_and_sizes`."""
        return prior_centers_and_sizes(priors, prior_format if self.prior_format == 'auto' else self.prior_format)

    def distance(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str) -> Tensor:
        """Distance (..., N, M) of the centres, in units of the prior: the side of the square of its area."""
        centers, sizes = self.centers_and_sizes(priors, prior_format)
        gt_centers = (gt_bboxes[..., :2] + gt_bboxes[..., 2:]) / 2
        # One coordinate at a time: no temporary is larger than the result.
        square = (centers[..., :, None, 0] - gt_centers[..., None, :, 0]).square_()
        square.add_((centers[..., :, None, 1] - gt_centers[..., None, :, 1]).square_())
        return square.sqrt_().div_(sizes.clamp(min=1e-6).prod(-1).sqrt_()[..., None])

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs
    ) -> Tensor:
        """Cost of one image, (N, M)."""
        priors, gt_bboxes = float_boxes(pred_instances.priors, gt_instances.bboxes)
        return self.cost(priors, gt_bboxes)


@TASK_UTILS.register_module()
class PriorCenterCost(PriorCost):
    """Distance from a prior's centre to the ground truth's, in units of the prior.

    The unit is the stride of a point prior and the side of the square of the same area of an anchor (8 strides for
    mmdet's ATSS and GFL anchors), so that priors of coarse levels may lie farther away.

    Args:
        weight: Factor of the distance.
        prior_format: 'anchor' (x1, y1, x2, y2), 'point' (x, y, stride, stride) or 'auto' (see
            :func:`prior_centers_and_sizes`).
    """

    def __init__(self, weight: float = 1.0, prior_format: str = 'auto') -> None:
        super().__init__(weight, prior_format)

    needs, batched = NEEDS, PriorCost.of_batch

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'auto') -> Tensor:
        """Cost (..., N, M) of priors (..., N, 4) and ground truths (..., M, 4), pixels."""
        return self.distance(priors, gt_bboxes, prior_format).mul_(self.weight)


@TASK_UTILS.register_module()
class InsideGTCost(PriorCost):
    """A large constant for priors whose centre is outside the ground truth, or outside its centre region.

    Heads that predict distances to the four sides (GFL, FCOS, ATSS) cannot regress a box from outside it.

    Args:
        weight: The constant.
        center_radius: If given, the centre must also lie within this many units (strides of points, widths and
            heights of anchors) of the ground truth's centre, in x and in y.
        prior_format: As for :class:`PriorCenterCost`.
    """

    def __init__(self, weight: float = 20.0, center_radius: Optional[float] = None, prior_format: str = 'auto') -> None:
        super().__init__(weight, prior_format)
        self.center_radius = number('center_radius', center_radius, above=0, optional=True)

    needs, batched = NEEDS, PriorCost.of_batch

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'auto') -> Tensor:
        """Cost (..., N, M) of priors (..., N, 4) and ground truths (..., M, 4), pixels."""
        centers, sizes = self.centers_and_sizes(priors, prior_format)
        centers, sizes, boxes = centers[..., :, None, :], sizes[..., :, None, :], gt_bboxes[..., None, :, :]
        outside = torch.zeros((), dtype=torch.bool, device=priors.device)
        for axis in range(2):
            center, low, high = centers[..., axis], boxes[..., axis], boxes[..., axis + 2]
            outside = outside | (center <= low) | (center >= high)
            if self.center_radius is not None:
                outside |= (center - (low + high) / 2).abs_() >= self.center_radius * sizes[..., axis]
        return self.weight * outside.to(centers.dtype)


@TASK_UTILS.register_module()
class PriorIoUCost(PriorCost):
    """Minus the overlap of the prior itself with the ground truth, beside costs that see predicted boxes.

    The cost keeps the matching on the right level while the predictions are still poor. A point prior counts as the
    square of one stride around it.

    Args:
        weight: Factor of the overlap.
        iou_mode: 'iou' or 'giou'.
        prior_format: As for :class:`PriorCenterCost`.
    """

    def __init__(self, weight: float = 1.0, iou_mode: str = 'giou', prior_format: str = 'auto') -> None:
        super().__init__(weight, prior_format)
        if iou_mode not in ('iou', 'giou'):
            raise ValueError(f"iou_mode must be 'iou' or 'giou', got {iou_mode!r}")
        self.iou_mode = iou_mode

    needs, batched = NEEDS, PriorCost.of_batch

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'auto') -> Tensor:
        """Cost (..., N, M) of priors (..., N, 4) and ground truths (..., M, 4), pixels."""
        centers, sizes = self.centers_and_sizes(priors, prior_format)
        boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
        return pairwise_overlaps(boxes, gt_bboxes, self.iou_mode).mul_(-self.weight)
