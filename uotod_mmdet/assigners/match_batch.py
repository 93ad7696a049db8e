"""Any assigner's plan for a batch of images."""

import inspect
from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmdet.models.task_modules.assigners import (
    ATSSAssigner,
    DynamicSoftLabelAssigner,
    MaxIoUAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
)
from torch import Tensor

from uotod_mmdet.costs import Batch

from .base import TransportAssigner


def reads_predicted_boxes(assigner: Any) -> bool:
    """Whether predicted boxes mean anything to ``assigner``; where not, a dense head need not decode them."""
    if isinstance(assigner, TransportAssigner):
        return assigner.box_source != 'priors'
    return not isinstance(assigner, (ATSSAssigner, MaxIoUAssigner)) or getattr(assigner, 'alpha', None) is not None


@torch.no_grad()
def match_batch(assigner: Any, batch: Batch, num_level_priors: Optional[Sequence[int]] = None) -> Tensor:
    """Match a batch of images by an assigner of ours or mmdet's.

    Args:
        assigner: A :class:`TransportAssigner`, whose soft plan is taken, or any mmdet assigner, whose AssignResult is
            a plan of zeros and ones: 0 is the background, -1 a zero row.
        batch: What :func:`~uotod_mmdet.costs.make_batch` returns.
        num_level_priors: Number of priors of each pyramid level, which mmdet's ATSSAssigner reads.

    Returns:
        Plan (B, N, M + 1), last column the background, in the dtype of the boxes. Rows of predictions that take no
        part are zero.

    Raises:
        ValueError: If the assigner answers with another shape, or reads priors in a form that anchors do not have.
    """
    shape = (*batch.bboxes.shape[:2], batch.gt_labels.size(1) + 1)
    if isinstance(assigner, TransportAssigner):
        plan = assigner.plan(batch)[1]
        if plan.shape != shape:
            raise ValueError(
                f'{type(assigner).__name__} answered with a plan of shape {tuple(plan.shape)}, but {shape[1]} '
                f'predictions and {shape[2] - 1} ground truths (padded) of {shape[0]} images need {shape}: '
                'predictions, ground truths, and the background last.'
            )
        return plan
    if isinstance(assigner, (SimOTAAssigner, DynamicSoftLabelAssigner)) and batch.priors is not None:
        raise ValueError(
            f'{type(assigner).__name__} reads priors as points with strides, but this head has anchors (x1, y1, x2, '
            "y2): use dict(type='uotod_mmdet.OTAAssigner') instead."
        )
    plan = batch.bboxes.new_zeros(shape)
    for index, gts in enumerate(batch.gt_instances):
        predictions = batch.pred_instances(index)
        inside = torch.arange(shape[1], device=plan.device)
        if batch.pred_mask is not None:
            inside = batch.pred_mask[index].nonzero().squeeze(1)
            predictions = predictions[inside]
        if isinstance(assigner, TaskAlignedAssigner):
            predictions.scores = predictions.scores.sigmoid()
        elif not reads_predicted_boxes(assigner):
            for name in ('bboxes', 'scores'):
                predictions.pop(name, None)
        known = dict(
            gt_instances=gts,
            gt_instances_ignore=batch.gt_instances_ignore[index],
            img_meta=batch.img_metas[index],
            num_level_priors=_num_level_priors(num_level_priors, batch.pred_mask, index),
        )
        accepted = inspect.signature(assigner.assign).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
            known = {parameter.name: known[parameter.name] for parameter in accepted if parameter.name in known}
        gt_inds = assigner.assign(predictions, **known).gt_inds
        if gt_inds.shape != inside.shape or (len(gt_inds) and not -1 <= gt_inds.min() <= gt_inds.max() <= len(gts)):
            raise ValueError(
                f'{type(assigner).__name__} answered with gt_inds of shape {tuple(gt_inds.shape)} for '
                f'{len(inside)} predictions, or with an index outside -1 (ignored), 0 (background), 1 to {len(gts)}.'
            )
        kept = gt_inds >= 0
        plan[index, inside[kept], (gt_inds[kept] - 1) % shape[2]] = 1
    return plan


def _num_level_priors(
    num_level_priors: Optional[Sequence[int]], pred_mask: Optional[Tensor], index: int
) -> Optional[list[int]]:
    """Number of priors of each level that take part."""
    if num_level_priors is None or pred_mask is None:
        return num_level_priors
    return [int(inside.sum()) for inside in pred_mask[index].split(list(num_level_priors))]
