"""What an assigner found, and how it is read hard: one ground truth or the background for each prediction."""

from typing import NamedTuple, Optional

import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import Batch, ignored_boxes
from uotod_mmdet.ops import act_if, one_hot_plan


class Matching(NamedTuple):
    """What an assigner found for a batch of images."""

    plan: Tensor  # (B, N, M + 1), last column the background; rows of predictions that take no part are 0
    cost: Optional[Tensor]  # (B, N, M), 0 on padding; None: the assigner does not return costs
    num_iter: Optional[Tensor]  # (B,) iterations of the solver; None: the strategy does not iterate


def read_hard(batch: Batch, boxes: Optional[Tensor], matching: Optional[Matching], keep_every_gt: bool) -> AssignResult:
    """Read the plan of one image as mmdet's heads take it.

    Args:
        batch: The image.
        boxes: Boxes of its predictions for the overlaps, (N, 4); None: it has none.
        matching: Plan and costs of the image. None: it has no predictions or no ground truths.
        keep_every_gt: Whether a ground truth that no prediction chose gets one.

    Returns:
        See :meth:`TransportAssigner.assign`; ignored boxes are left out.
    """
    _, num_preds, num_gts = batch.shape
    gt_inds = torch.zeros(num_preds, dtype=torch.long, device=batch.device)
    labels = torch.full_like(gt_inds, -1)
    max_overlaps = None
    if boxes is not None and batch.gt_bboxes is not None:
        max_overlaps = boxes.new_zeros(num_preds)
    if matching is not None:
        assert matching.cost is not None
        gt_inds = read_plan(matching.plan[0], matching.cost[0], batch.gt_mask[0], keep_every_gt)
        matched = (gt_inds > 0).nonzero().squeeze(1)
        matched_gts = gt_inds[matched] - 1
        labels[matched] = batch.gt_labels[0, matched_gts]
        if boxes is not None and batch.gt_bboxes is not None and max_overlaps is not None:
            gt_bboxes = batch.gt_bboxes[0, matched_gts].to(boxes.dtype)
            max_overlaps[matched] = bbox_overlaps(boxes[matched], gt_bboxes, is_aligned=True)
            _check_overlaps(max_overlaps, batch.img_metas[0])
    return AssignResult(num_gts, gt_inds, max_overlaps, labels)


def read_plan(plan: Tensor, cost: Tensor, gt_mask: Tensor, keep_every_gt: bool) -> Tensor:
    """Heaviest column of each prediction: 1-based ground truth or 0 for the background, (N,)."""
    num_gts = cost.size(1)
    heaviest, gt_inds = plan[:, :num_gts].max(1)
    gt_inds = torch.where(heaviest > plan[:, num_gts], gt_inds + 1, 0)
    if not keep_every_gt:
        return gt_inds
    count = torch.bincount(gt_inds, minlength=num_gts + 1)
    for gt in ((count[1:] == 0) & gt_mask).nonzero().squeeze(1).tolist():
        free = (gt_inds == 0) | (count[gt_inds] > 1)
        if not free.any():
            break  # more ground truths than predictions
        mass = plan[:, gt].masked_fill(~free, -1)
        by_cost = cost[:, gt].masked_fill(~free, float('inf'))
        best = int(mass.argmax() if mass.max() > 0 else by_cost.argmin())
        count[gt_inds[best]] -= 1
        gt_inds[best] = gt + 1
        count[gt + 1] += 1
    return gt_inds


def harden(plan: Tensor, cost: Tensor, gt_mask: Tensor, keep_every_gt: bool) -> Tensor:
    """The plan (B, N, M + 1) as :func:`read_plan` reads it: 1 at one column of each row that has mass, 0 elsewhere."""
    gt_inds = [read_plan(*image, keep_every_gt) for image in zip(plan, cost[:, :, :-1], gt_mask)]
    return one_hot_plan(torch.stack(gt_inds) - 1, plan.sum(2) > 0, True, plan)


def on_ignored(owner: str, boxes: Optional[Tensor], ignored: InstanceData, iof_thr: float) -> Tensor:
    """Which predictions overlap an ignored box too much, (N,)."""
    if boxes is None:
        raise ValueError(
            'gt_instances_ignore holds boxes, but predictions have neither bboxes nor priors (N, 4) that could '
            f'overlap them: set ignore_iof_thr=-1 in {owner}.'
        )
    iof = bbox_overlaps(boxes, ignored_boxes(ignored).to(boxes), mode='iof')
    return iof.amax(1) > iof_thr


def _check_overlaps(overlaps: Tensor, img_meta: dict) -> None:
    def complain() -> None:
        raise ValueError(
            f'pred_instances.bboxes: the overlap of {int((~overlaps.isfinite()).sum())} of {len(overlaps)} '
            f'predictions of {img_meta.get("img_path", "an image")} with their ground truths is not '
            'finite: coordinates are NaN or so large that areas overflow, as a diverged model gives them.'
        )

    act_if(~torch.isfinite(overlaps.sum()), complain)
