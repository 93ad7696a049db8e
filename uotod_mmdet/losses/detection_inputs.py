"""Checks of the inputs of DetectionLoss: predictions, targets, anchors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from uotod_mmdet.costs import as_labels, pad
from uotod_mmdet.ops import is_traced
from uotod_mmdet.plan import check_class_weight

from .checks import beyond_limit, box_limit, check_tensor, explain_boxes, full_precision

NAME = 'DetectionLoss'


def read_predictions(input: Mapping[str, Any], loss_cls: nn.Module, bg_class_position: str) -> tuple[Tensor, Tensor]:
    """Logits (B, N, C) and boxes (B, N, 4), both float32 or both float64."""
    for name in ('pred_logits', 'pred_boxes'):
        if name not in input:
            raise TypeError(f'{NAME}: input needs pred_logits and pred_boxes, got {sorted(input)}.')
    logits, boxes = input['pred_logits'], get_box_tensor(input['pred_boxes'])
    if not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.is_floating_point():
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f'{NAME}: pred_logits must be a floating-point tensor (B, N, C), got {came}.')
    shape = (*logits.shape[:2], 4)
    check_tensor(NAME, 'pred_boxes', boxes, shape, 'It holds one box (x1, y1, x2, y2) for each row of pred_logits.')
    if not boxes.is_floating_point():
        raise TypeError(f'{NAME}: pred_boxes must be a floating-point tensor, got {boxes.dtype}.')
    columns, background = logits.size(2), bg_class_position != 'none'
    if columns <= background:
        raise ValueError(
            f'{NAME}: pred_logits has {columns} column(s), which leaves no class beside the background '
            f'(bg_class_position={bg_class_position!r}): give the model one output for each class and one '
            'for the background.'
        )
    classes = f'{columns - background} classes' + ' and the background' * background
    check_class_weight(NAME, loss_cls, columns, f'{classes} (bg_class_position={bg_class_position!r})')
    logits, boxes = full_precision(logits), full_precision(boxes)
    dtype = torch.promote_types(logits.dtype, boxes.dtype)
    return logits.to(dtype), boxes.to(dtype)


def read_targets(target: Any, logits: Tensor, boxes: Tensor, bg_class_position: str) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, M), boxes (B, M, 4) and mask (B, M), checked."""
    if isinstance(target, Mapping):
        labels, gt_boxes, mask = _stacked_targets(target, len(logits))
    else:
        labels, gt_boxes, mask = _listed_targets(target, boxes)
    columns = logits.size(2)
    labels, gt_boxes = as_labels(labels, f'{NAME}: target labels'), gt_boxes.to(boxes)

    low = 1 if bg_class_position == 'first' else 0
    high = columns - (bg_class_position == 'last')
    wrong_label = (((labels < low) | (labels >= high)) & mask).any()
    upside_down = ((gt_boxes[..., 2:] < gt_boxes[..., :2]).any(-1) & mask).any()
    mostly_upside_down = (boxes[..., 2:] < boxes[..., :2]).any(-1).sum() * 2 > boxes[..., 0].numel()
    not_finite = ~logits.detach().sum().isfinite()
    beyond = beyond_limit(boxes)
    gts_beyond = (~(gt_boxes.abs() <= box_limit(gt_boxes.dtype)).all(-1) & mask).any()
    faults = torch.stack([wrong_label, upside_down, mostly_upside_down, not_finite, beyond, gts_beyond]).any()
    if not is_traced() and faults:
        if not_finite:
            bad = int((~logits.isfinite()).sum())
            if bad:  # false if only the sum of finite entries overflows
                raise ValueError(
                    f'{NAME}: pred_logits holds {bad} NaN or infinite of {logits.numel()} entries. Usual causes: '
                    'training has diverged (lower the learning rate, or clip gradients), or fp16 overflow.'
                )
        if beyond:
            raise ValueError(f'{NAME}: pred_boxes {explain_boxes(boxes)}')
        if gts_beyond:
            raise ValueError(f'{NAME}: target boxes {explain_boxes(gt_boxes[mask])}')
        if wrong_label:
            held = labels[mask]
            hint = {
                'first': ' With bg_class_position="first" column 0 is the background and classes start at 1.',
                'last': f' With bg_class_position="last" column {columns - 1} is the background.',
                'none': '',
            }[bg_class_position]
            raise ValueError(
                f'{NAME}: target labels hold {held.min()} to {held.max()}, but the foreground classes of '
                f'pred_logits with {columns} columns are {low} to {high - 1}.{hint}'
            )
        if not upside_down and not mostly_upside_down:
            return labels, gt_boxes, mask
        name, values = ('target boxes', gt_boxes[mask]) if upside_down else ('pred_boxes', boxes.flatten(0, 1))
        worst = values[(values[:, 2:] < values[:, :2]).any(1)][0].tolist()
        raise ValueError(
            f'{NAME}: {name} must be (x1, y1, x2, y2), but x2 < x1 or y2 < y1, first in {worst}. Boxes given by '
            'centre or corner, width and height need converting, with mmdet.structures.bbox.bbox_cxcywh_to_xyxy '
            'for example.'
        )
    return labels, gt_boxes, mask


def _stacked_targets(target: Mapping[str, Any], batch: int) -> tuple[Tensor, Tensor, Tensor]:
    labels, gt_boxes, mask = target.get('labels'), get_box_tensor(target.get('boxes')), target.get('mask')
    if not isinstance(labels, Tensor) or not isinstance(gt_boxes, Tensor):
        raise TypeError(f'{NAME}: target needs tensors labels and boxes, got {sorted(target)}.')
    if labels.dim() != 2 or len(labels) != batch:
        raise ValueError(
            f'{NAME}: target labels must have shape (B, M) with the B = {batch} images of pred_logits, got '
            f'{tuple(labels.shape)}. Pad each image to M ground truths and say in mask which are real.'
        )
    check_tensor(NAME, 'target boxes', gt_boxes, (*labels.shape, 4), 'One box (x1, y1, x2, y2) for each label.')
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)
    check_tensor(NAME, 'target mask', mask, labels.shape, 'True on real ground truths, False on padding.')
    return labels, gt_boxes, mask.bool()


def _listed_targets(target: Any, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(boxes)
    if not isinstance(target, Sequence) or not all(isinstance(gt, InstanceData) for gt in target):
        raise TypeError(
            f'{NAME}: target must be a dict of the tensors labels, boxes and mask, or a list of one '
            f'InstanceData with labels and bboxes for each image, got {type(target).__name__}.'
        )
    if len(target) != batch:
        raise ValueError(f'{NAME}: target holds {len(target)} images, but pred_logits and pred_boxes hold {batch}.')
    for index, gt in enumerate(target):
        if 'labels' not in gt or 'bboxes' not in gt or gt.labels.dim() != 1:
            raise ValueError(
                f'{NAME}: target {index} needs labels (M,) and bboxes (M, 4) of its M ground truths, got '
                f'{ {name: tuple(value.shape) for name, value in gt.items()} }.'
            )
        shape = (len(gt.labels), 4)
        check_tensor(NAME, f'bboxes of target {index}', get_box_tensor(gt.bboxes), shape, 'One for each label.')
    if not batch:
        labels = boxes.new_zeros(0, 0, dtype=torch.long)
        return labels, boxes.new_zeros(0, 0, 4), labels.bool()
    real = [torch.ones_like(gt.labels, dtype=torch.bool) for gt in target]
    of_images = [as_labels(gt.labels, f'{NAME}: target labels') for gt in target]
    labels, gt_boxes, mask = pad(of_images, [get_box_tensor(gt.bboxes) for gt in target], real)
    return labels, gt_boxes, mask


def read_anchors(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Anchors as (B, N, 4)."""
    anchors = get_box_tensor(anchors)
    if anchors.shape not in (boxes.shape, boxes.shape[1:]):
        raise ValueError(
            f'{NAME}: anchors must have shape {tuple(boxes.shape[1:])} or {tuple(boxes.shape)}, one for each '
            f'prediction; got {tuple(anchors.shape)}.'
        )
    return anchors.to(boxes).expand_as(boxes)
