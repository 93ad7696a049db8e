"""The cost matrix of an image from mmdet's match costs."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from .prior_costs import prior_centers_and_sizes

BOX_SOURCES = ('auto', 'bboxes', 'priors')


def prior_boxes(priors: Tensor) -> Tensor:
    """Priors as boxes (x1, y1, x2, y2), pixels, (N, 4): a point becomes the square of one stride around it."""
    centers, sizes = prior_centers_and_sizes(priors)
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)


def pairwise_cost(
    match_costs: Sequence,
    pred_instances: InstanceData,
    gt_instances: InstanceData,
    img_meta: Optional[dict] = None,
    box_source: str = 'auto',
) -> Tensor:
    """Sum of the match costs of one image.

    Args:
        match_costs: mmdet match costs, or any callables of their signature.
        pred_instances: N predictions with what the costs read: ``scores`` (logits for mmdet's classification costs),
            ``bboxes`` (N, 4), ``priors`` (N, 4); boxes in pixels.
        gt_instances: M ground truths with ``bboxes`` (M, 4) in pixels and ``labels`` (M,).
        img_meta: The image's meta information; BBoxL1Cost reads ``img_shape``.
        box_source: What the costs see as ``bboxes``: 'bboxes', 'priors', or 'auto' (priors where there are no bboxes).

    Returns:
        Cost in float32 (float64 if the boxes are), (N, M).

    Raises:
        ValueError: If a cost is not finite (naming the image, the cost and how many entries), or a label is not a
            class of the scores.
    """
    pred_instances = _with_boxes(pred_instances, box_source)
    gt_bboxes = gt_instances.bboxes
    if not isinstance(gt_bboxes, Tensor):  # mmdet's HorizontalBoxes
        gt_instances = InstanceData(**{**dict(gt_instances.items()), 'bboxes': gt_bboxes.tensor})
    _check_labels(pred_instances, gt_instances)
    dtype = torch.promote_types(gt_instances.bboxes.dtype, torch.float32)
    total = torch.zeros(len(pred_instances), len(gt_instances), dtype=dtype, device=gt_instances.bboxes.device)
    with torch.autocast(total.device.type, enabled=False):
        for match_cost in match_costs:
            cost = match_cost(pred_instances=pred_instances, gt_instances=gt_instances, img_meta=img_meta)
            total += cost.detach().to(dtype)
    if not torch.isfinite(total).all():
        _raise_not_finite(match_costs, pred_instances, gt_instances, img_meta)
    return total


def _with_boxes(pred_instances: InstanceData, box_source: str) -> InstanceData:
    """Predictions in float32 with ``bboxes`` as ``box_source`` says."""
    fields = {name: value for name, value in pred_instances.items() if isinstance(value, Tensor)}
    if 'priors' in fields and (box_source == 'priors' or (box_source == 'auto' and 'bboxes' not in fields)):
        fields['bboxes'] = prior_boxes(fields['priors'])
    if 'bboxes' not in fields or (box_source == 'priors' and 'priors' not in fields):
        raise ValueError(
            f'box_source={box_source!r} does not fit predictions that hold {sorted(pred_instances.keys())}: '
            'this head gives the assigner ' + ('no priors.' if 'bboxes' in fields else "priors only; use 'auto'.")
        )
    for name, value in fields.items():
        if value.dtype in (torch.float16, torch.bfloat16):
            fields[name] = value.float()
    return InstanceData(**fields)


def _check_labels(pred_instances: InstanceData, gt_instances: InstanceData) -> None:
    if 'scores' not in pred_instances or pred_instances.scores.dim() != 2 or not len(gt_instances):
        return
    labels, num_classes = gt_instances.labels, pred_instances.scores.size(1)
    if bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(
            f'gt_instances.labels holds {labels.min().item()} to {labels.max().item()}, but the scores have '
            f'{num_classes} classes: set num_classes of the head to the number of classes of the data set, and check '
            "the data set's metainfo."
        )


def _raise_not_finite(
    match_costs: Sequence, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict]
) -> None:
    image = (img_meta or {}).get('img_path', 'an image')
    for match_cost in match_costs:
        cost = match_cost(pred_instances=pred_instances, gt_instances=gt_instances, img_meta=img_meta)
        bad = int((~torch.isfinite(cost)).sum())
        if bad:
            name = type(match_cost).__name__
            break
    else:
        name, bad = 'the sum of the match costs', cost.numel()
    raise ValueError(
        f'{name} is not finite at {bad} of {cost.numel()} pairs of prediction and ground truth of {image}. '
        'Usual causes: a model that has diverged (lower the learning rate, or clip gradients with '
        "optim_wrapper.clip_grad=dict(max_norm=...)), fp16 overflow, or NaN in the annotations' boxes."
    )
