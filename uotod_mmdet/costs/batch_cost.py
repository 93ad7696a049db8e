"""The sum of match costs for a whole batch of images."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.ops import CostTerm, PairInputs, act_if, pair_costs, to_device_of

from . import mmdet_costs  # noqa: F401  (declares how mmdet's costs are computed)
from .batch import Batch, check_mask
from .declared import reading_of_cost


def batch_cost(match_costs: Sequence, batch: Batch) -> Tensor:
    """Sum of the match costs.

    A cost that has a form for a whole batch (mmdet's ClassificationCost, FocalLossCost, BBoxL1Cost and IoUCost, its
    costs of masks where these are stacked, ours, and any cost that defines one) is computed for all images at once; any
    other is called one image at a time.

    Args:
        match_costs: mmdet match costs, or any callables of their signature.
        batch: What :func:`make_batch` returns.

    Returns:
        Costs in the batch's dtype, 0 on padding and on predictions that take no part, (B, N, M).

    Raises:
        ValueError: If a cost is not finite, naming the image, the cost and how many entries; if a cost reads what
            the head does not give; or if a mask has a wrong shape or dtype.
    """
    return costs_and_background(match_costs, batch, 0.0)[:, :, :-1]


def costs_and_background(match_costs: Sequence, batch: Batch, background_cost: float) -> Tensor:
    """:func:`batch_cost` with a last column of ``background_cost``, (B, N, M + 1)."""
    check_mask('gt_mask', batch.gt_mask, batch.shape[::2])
    check_mask('pred_mask', batch.pred_mask, batch.shape[:2])
    batch = batch.with_logits()
    like = torch.empty(batch.shape[:2], dtype=batch.dtype, device=batch.device)
    with torch.autocast(batch.device.type, enabled=False), torch.no_grad():
        # Without pairs, missing fields are no error.
        terms, inputs = _terms(match_costs, batch) if all(batch.shape) else ([], PairInputs(*[None] * 6))
        costs, finite = pair_costs(terms, inputs, batch.gt_mask, batch.pred_mask, like, background_cost)
    act_if(~finite, lambda: _raise_not_finite(match_costs, batch, costs[:, :, :-1]))
    return costs


def _terms(match_costs: Sequence, batch: Batch) -> tuple[list[CostTerm], PairInputs]:
    """The terms to sum, and their inputs."""
    terms: list[CostTerm] = []
    total: Optional[Tensor] = None
    for match_cost in match_costs:
        found = _term(match_cost, batch)
        if isinstance(found, CostTerm):
            terms.append(found)
        else:
            total = found if total is None else total + found
            del found  # a temporary less while the next cost is computed
    kinds = {term.kind for term in terms}
    if total is not None:
        terms.append(CostTerm('given', 1.0))
    boxes = bool(kinds & {'iou', 'giou', 'log_iou', 'l1'})
    classes = bool(kinds & {'softmax', 'focal'})
    inputs = PairInputs(
        boxes=batch.bboxes if boxes else None,
        gt_boxes=batch.gt_bboxes if boxes else None,
        scores=batch.scores if classes else None,
        labels=batch.gt_labels if classes else None,
        sizes=_image_sizes(batch) if 'l1' in kinds else None,
        given=None if total is None else total.to(batch.dtype).contiguous(),
    )
    return terms, inputs


def _term(match_cost: Any, batch: Batch) -> Union[CostTerm, Tensor]:
    """One match cost of the batch: a term, or the costs (B, N, M), any values on padding."""
    reading = reading_of_cost(match_cost)
    if reading.batched is None:
        return _one_image_at_a_time(match_cost, batch)
    for name in reading.needs:
        if getattr(batch, name) is None:
            raise ValueError(_missing(match_cost, name, batch))
    found = reading.batched(match_cost, batch)
    return _one_image_at_a_time(match_cost, batch) if found is None else found


def _missing(match_cost: Any, name: str, batch: Batch) -> str:
    name, shape = {
        'scores': ('scores', '(N, C)'),
        'gt_bboxes': ('bboxes of ground truths', '(M, 4)'),
        'masks': ('stacked masks', '(N, P)'),
        'gt_masks': ('masks of ground truths', '(M, P)'),
    }.get(name, (name, '(N, 4)'))
    suits = 'leave the cost out, or use a prediction-aware head'
    if name == 'priors':
        suits = 'it suits heads with anchors or points, not query-based ones such as DETRHead'
    return (
        f'{type(match_cost).__name__} needs {name} {shape}, but this head gives the assigner only {batch.given()}: '
        f'{suits}.'
    )


def _one_image_at_a_time(match_cost: Any, batch: Batch) -> Tensor:
    term = torch.zeros(batch.shape, dtype=batch.dtype, device=batch.device)
    for index, gt in enumerate(batch.gt_instances):
        if not (len(gt) and batch.num_preds):
            continue
        pred = batch.pred_instances(index)
        boxes = {name: getattr(batch, name)[index] for name in ('bboxes', 'priors') if getattr(batch, name) is not None}
        truth = dict(labels=batch.gt_labels[index, : len(gt)])
        if batch.gt_bboxes is not None:
            truth['bboxes'] = batch.gt_bboxes[index, : len(gt)]
        try:
            cost = match_cost(
                pred_instances=_with(pred, boxes), gt_instances=_with(gt, truth), img_meta=batch.img_metas[index]
            )
        except AttributeError as error:
            if "'InstanceData' object has no attribute" not in str(error):
                raise
            raise ValueError(
                f'{type(match_cost).__name__} needs a field that this head does not give the assigner ({error}); there '
                f'are {batch.given()}.'
            ) from error
        if getattr(cost, 'shape', None) != (batch.num_preds, len(gt)):
            came = f'a cost of shape {tuple(cost.shape)}' if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(
                f'{type(match_cost).__name__} answered with {came} for '
                f'{batch.num_preds} predictions and {len(gt)} ground truths'
            )
        term[index, :, : len(gt)] = cost
    return term


def _with(instances: InstanceData, values: dict[str, Tensor]) -> InstanceData:
    """The instances with ``values`` and without half precision; rotated boxes stay as they are."""
    fields = dict(instances.items())
    for name, value in fields.items():
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            fields[name] = value.float()  # autocast is off
    for name, value in values.items():
        if not isinstance(fields.get(name), BaseBoxes) or isinstance(fields[name], HorizontalBoxes):
            fields[name] = value
    return InstanceData(metainfo=dict(instances.metainfo_items()), **fields)


def _image_sizes(batch: Batch) -> Tensor:
    """Width, height, width, height of each image, (B, 4)."""
    if not all('img_shape' in meta for meta in batch.img_metas):
        raise ValueError('BBoxL1Cost needs img_meta with img_shape, which this head does not give the assigner.')
    assert batch.bboxes is not None  # BBoxL1Cost needs them
    sizes = [[w, h, w, h] for h, w in (meta['img_shape'][:2] for meta in batch.img_metas)]
    return to_device_of(batch.bboxes, sizes)


def _raise_not_finite(match_costs: Sequence, batch: Batch, total: Tensor) -> None:
    if torch.isfinite(total).all():
        return  # only the sum of finite entries overflowed
    index = int((~torch.isfinite(total)).flatten(1).any(1).nonzero()[0])
    name, bad = 'the sum of the match costs', int((~torch.isfinite(total[index])).sum())
    for match_cost in match_costs:
        term = _alone(match_cost, batch)[index]
        if not torch.isfinite(term).all():
            name, bad = type(match_cost).__name__, int((~torch.isfinite(term)).sum())
            break
    takes_part = batch.num_preds if batch.pred_mask is None else int(batch.pred_mask[index].sum())
    num_pairs = takes_part * int(batch.gt_mask[index].sum())
    image = batch.img_metas[index].get('img_path', 'an image' if len(total) == 1 else f'image {index} of the batch')
    raise ValueError(
        f'{name} is not finite at {bad} of {num_pairs} pairs of prediction and '
        f'ground truth of {image}. Usual causes: a model that has diverged (lower the learning rate, or clip '
        "gradients with optim_wrapper.clip_grad=dict(max_norm=...)), fp16 overflow, or NaN in the annotations' boxes."
    )


def _alone(match_cost: Any, batch: Batch) -> Tensor:
    """One match cost, 0 on pairs that take no part, (B, N, M)."""
    terms, inputs = _terms([match_cost], batch)
    like = torch.empty(batch.shape[:2], dtype=batch.dtype, device=batch.device)
    return pair_costs(terms, inputs, batch.gt_mask, batch.pred_mask, like, 0.0)[0][:, :, :-1]
