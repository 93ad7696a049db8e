"""The terms of FCOS's rule (arXiv 1904.01355, section 3.2) as match costs."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import act_if, to_device_of
from uotod_mmdet.registry import TASK_UTILS

from .batch import Batch
from .boxes import float_boxes
from .prior_costs import NEEDS, PriorCost


@TASK_UTILS.register_module()
class RegressRangeCost(PriorCost):
    """A constant for points whose farthest side of the ground truth is not in the range of the point's level.

    Args:
        weight: The constant.
        regress_ranges: Smallest and largest distance, pixels, of each level.
        strides: Stride of each level, by which the levels of the points are told apart.
    """

    needs, batched = NEEDS, PriorCost.of_batch

    def __init__(
        self,
        weight: float = 20.0,
        regress_ranges: Sequence[Sequence[float]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
        strides: Sequence[float] = (8, 16, 32, 64, 128),
    ) -> None:
        super().__init__(weight, 'point')
        if len(regress_ranges) != len(strides):
            raise ValueError(
                f'RegressRangeCost: regress_ranges and strides must hold one entry for each level, got '
                f'{len(regress_ranges)} ranges for the strides {list(strides)}.'
            )
        self.regress_ranges = [(float(low), float(high)) for low, high in regress_ranges]
        self.strides = [number('strides', stride, above=0) for stride in strides]

    def cost(self, priors: Tensor, gt_bboxes: Tensor, prior_format: str = 'point') -> Tensor:
        """Cost (..., N, M) of points (..., N, 4) and ground truths (..., M, 4), pixels."""
        if prior_format == 'anchor':
            raise ValueError('RegressRangeCost reads points with strides, but the priors of this head are anchors.')
        on_level = priors[..., 2, None] == to_device_of(priors, self.strides)  # (..., N, L)

        def complain() -> None:
            found = priors[~on_level.any(-1)][0, 2].item()
            raise ValueError(f'RegressRangeCost: a point has the stride {found:g}, but strides={self.strides}.')

        act_if(~on_level.any(-1).all(), complain)
        low, high = to_device_of(priors, self.regress_ranges)[on_level.to(torch.uint8).argmax(-1)].unbind(-1)
        sides = []
        for axis in range(2):
            point, gts = priors[..., :, None, axis], gt_bboxes[..., None, :, :]
            sides.append(torch.maximum(point - gts[..., axis], gts[..., axis + 2] - point))
        farthest = torch.maximum(*sides)
        outside = (farthest < low[..., None]) | (farthest > high[..., None])
        return self.weight * outside.to(priors.dtype)


@TASK_UTILS.register_module()
class GTAreaCost(BaseMatchCost):
    """Area of the ground truth, a / (a + that of the image): small ones come first where several fit.

    Args:
        weight: Factor of the cost, which lies between 0 and ``weight``.
    """

    needs = ('gt_bboxes',)

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(number('weight', weight))

    def batched(self, batch: Batch) -> Tensor:
        """Cost of a batch, (B, N, M)."""
        assert batch.gt_bboxes is not None  # needs
        return self.cost(batch.gt_bboxes, batch.img_metas)[:, None].expand(batch.shape)

    def cost(self, gt_bboxes: Tensor, img_metas: Sequence[dict]) -> Tensor:
        """Cost (B, M) of the ground truths (B, M, 4) of B images."""
        for meta in img_metas:
            if 'img_shape' not in meta:
                raise ValueError(
                    'GTAreaCost needs img_meta with img_shape, which this head does not give the assigner.'
                )
        image = to_device_of(gt_bboxes, [meta['img_shape'][0] * meta['img_shape'][1] for meta in img_metas])
        area = (gt_bboxes[..., 2] - gt_bboxes[..., 0]) * (gt_bboxes[..., 3] - gt_bboxes[..., 1])
        return self.weight * area / (area + image[:, None])

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs: Any
    ) -> Tensor:
        """Cost of one image, (N, M)."""
        (gt_bboxes,) = float_boxes(gt_instances.bboxes)
        return self.cost(gt_bboxes[None], [img_meta or {}]).expand(len(pred_instances), -1)
