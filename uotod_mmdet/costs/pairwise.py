"""The costs of a whole batch of images from mmdet's match costs."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, NoReturn, Optional, Union

import torch
from mmdet.models.task_modules.assigners.match_cost import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, bbox_overlaps, bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.device import act_if, host_may_wait, to_device_of
from uotod_mmdet.native import Kernel

from .boxes import as_tensor
from .log_iou_cost import LogIoUCost
from .overlaps import pairwise_overlaps
from .prior_costs import InsideGTCost, PriorCenterCost, PriorCost, PriorIoUCost, prior_centers_and_sizes

BOX_SOURCES = ('auto', 'bboxes', 'priors')
STACKED = ('bboxes', 'scores', 'priors')


class Batch(NamedTuple):
    """Predictions and padded ground truths of B images; boxes and scores in one dtype, float32 or float64."""

    bboxes: Optional[Tensor]  # (B, N, 4) xyxy pixels, predicted or priors as box_source says
    scores: Optional[Tensor]  # (B, N, C) as the head gives them, logits for most
    priors: Optional[Tensor]  # (B, N, 4)
    gt_bboxes: Optional[Tensor]  # (B, M, 4) xyxy pixels
    gt_labels: Tensor  # (B, M) int64
    gt_mask: Tensor  # (B, M) False on padding and, where boxes are compared, on those without area
    pred_mask: Optional[Tensor]  # (B, N) False on predictions that take no part; None: all do
    predictions: Union[Sequence[InstanceData], Mapping[str, Any]]  # as given
    gt_instances: Sequence[InstanceData]
    gt_instances_ignore: Sequence[Optional[InstanceData]]
    img_metas: Sequence[dict]
    num_preds: int
    dtype: torch.dtype  # of costs and plans

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, N, M."""
        return len(self.gt_mask), self.num_preds, self.gt_mask.size(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.gt_mask.device

    def pred_instances(self, index: int) -> InstanceData:
        """The predictions of one image, as given."""
        if isinstance(self.predictions, Mapping):
            return InstanceData(**{name: values[index] for name, values in self.predictions.items()})
        return self.predictions[index]

    def given(self) -> str:
        """Which fields predictions and ground truths hold, for messages."""
        if isinstance(self.predictions, Mapping) or not self.predictions:
            of_preds = sorted(self.predictions)
        else:
            of_preds = sorted(self.predictions[0].keys())
        return f'{of_preds} of predictions and {sorted(self.gt_instances[0].keys())} of ground truths'


def as_labels(labels: Tensor, name: str = 'gt_instances.labels') -> Tensor:
    """Labels of any integer dtype as int64; of no labels, whatever dtype ``torch.zeros(0)`` gave them.

    Raises:
        TypeError: If there are labels and they are no integers.
    """
    if labels.numel() and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise TypeError(
            f'{name} must hold integers, numbers of classes, got {labels.dtype}: convert them with labels.long() where '
            'the data set or the pipeline makes them.'
        )
    return labels.long()


def prior_boxes(priors: Tensor) -> Tensor:
    """Priors as boxes (x1, y1, x2, y2), pixels, (..., N, 4): a point becomes the square of one stride around it."""
    centers, sizes = prior_centers_and_sizes(priors)
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)


def make_batch(
    predictions: Union[Sequence[InstanceData], Mapping[str, Any]],
    gt_instances: Sequence[InstanceData],
    img_metas: Optional[Sequence[Optional[dict]]] = None,
    box_source: str = 'auto',
    gt_instances_ignore: Optional[Sequence[Optional[InstanceData]]] = None,
    pred_mask: Optional[Tensor] = None,
    num_classes: Optional[int] = None,
) -> Batch:
    """Stack the predictions and pad the ground truths of a batch of images.

    Boxes may be tensors or mmdet's box types, of any dtype. Fields that are not listed, such as masks and points, reach
    the costs that are called one image at a time as they are.

    Args:
        predictions: For each of B images N predictions with what the costs read: ``scores`` (N, C), ``bboxes``
            (N, 4), ``priors`` (N, 4); boxes in pixels. Or the same stacked: a mapping of these names to (B, N, .).
        gt_instances: For each image its ground truths: ``labels`` (M_i,) of any integer dtype, ``bboxes`` (M_i, 4)
            pixels.
        img_metas: Meta information of each image; BBoxL1Cost reads ``img_shape``.
        box_source: What the costs see as ``bboxes``: 'bboxes', 'priors', or 'auto' (priors where there are no bboxes).
        gt_instances_ignore: For each image its ignored (crowd) boxes, ``bboxes`` (I_i, 4) pixels, or None.
        pred_mask: False on predictions that take no part, such as anchors on the padding of an image, (B, N).
        num_classes: Number of foreground classes, labels 0 to num_classes - 1. None: as many as the scores' columns.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If ``box_source`` does not fit, the images differ in their number or shape of predictions, the
            arguments in their number of images, a mask has another shape or dtype, or a label is no foreground class.
    """
    labels = class_labels(gt_instances)
    num_preds, dtype, fields = _stack(predictions)
    given = fields or ({} if isinstance(predictions, Mapping) else dict(predictions=predictions))
    given = dict(given, img_metas=img_metas, gt_instances_ignore=gt_instances_ignore)
    counts = {name: len(of_images) for name, of_images in given.items() if of_images is not None}
    if any(count != len(labels) for count in counts.values()):
        raise ValueError(
            f'gt_instances are of {len(labels)} images, but there are {counts}: one entry for each image of the batch '
            'is needed.'
        )
    bboxes, scores, priors = (
        fields[name].detach().to(dtype).contiguous() if name in fields else None for name in STACKED
    )
    # Proposals of a first stage carry one score each, which is none of a class.
    scores = scores if scores is not None and scores.dim() == 3 else None
    bboxes, priors = (boxes if boxes is not None and boxes.shape[2:] == (4,) else None for boxes in (bboxes, priors))
    if (bboxes if box_source == 'bboxes' else priors) is None and box_source != 'auto':
        raise ValueError(
            f'box_source={box_source!r} does not fit predictions that hold {sorted(fields)}: this head gives the '
            f"assigner no {box_source} (N, 4); use 'auto'."
        )
    if priors is not None and (box_source == 'priors' or 'bboxes' not in fields):
        bboxes = prior_boxes(priors)
    gt_labels, gt_bboxes = _pad_ground_truths(labels, gt_instances, dtype)
    if not labels and fields:
        gt_labels, gt_bboxes = (values.to(next(iter(fields.values())).device) for values in (gt_labels, gt_bboxes))
    if bboxes is not None and gt_bboxes is not None:
        gt_mask = (gt_bboxes[..., 2:] > gt_bboxes[..., :2]).all(-1)
    else:
        gt_mask = _real(labels, gt_labels)
    _check_mask('pred_mask', pred_mask, (len(labels), num_preds))
    if not all('positive_maps' in gt for gt in gt_instances):  # those say which scores, of tokens, are an object's
        _check_labels(gt_labels, scores, num_classes)
    return Batch(
        bboxes=bboxes,
        scores=scores,
        priors=priors,
        gt_bboxes=gt_bboxes,
        gt_labels=gt_labels,
        gt_mask=gt_mask,
        pred_mask=pred_mask,
        predictions=predictions,
        gt_instances=gt_instances,
        gt_instances_ignore=gt_instances_ignore or [None] * len(gt_instances),
        img_metas=[_with_plain_shape(meta or {}) for meta in img_metas or [None] * len(gt_instances)],
        num_preds=num_preds,
        dtype=dtype,
    )


def _with_plain_shape(img_meta: dict) -> dict:
    """The meta information with img_shape as height and width, which is how mmdet's costs unpack it."""
    shape = img_meta.get('img_shape', ())
    return {**img_meta, 'img_shape': tuple(shape[:2])} if len(shape) > 2 else img_meta


def _stack(predictions: Union[Sequence[InstanceData], Mapping[str, Any]]) -> tuple[int, torch.dtype, dict[str, Tensor]]:
    """N, the widest dtype of the predictions, at least float32, and the fields that the batched costs read, stacked."""
    if isinstance(predictions, Mapping):
        values = {name: as_tensor(value) for name, value in predictions.items()}
        fields = {name: values[name] for name in STACKED if values.get(name) is not None}
        shapes = {name: _shape(value) for name, value in fields.items()}
        if any(len(shape) < 2 for shape in shapes.values()) or len({shape[:2] for shape in shapes.values()}) > 1:
            raise ValueError(f'predictions must hold tensors of the same B images and N predictions, got {shapes}')
        num_preds = next((value.size(1) for value in (fields or values).values() if isinstance(value, Tensor)), 0)
    else:
        counts = sorted({len(pred) for pred in predictions})
        if len(counts) > 1:
            raise ValueError(f'images of one batch must have the same number of predictions, got {counts}')
        num_preds = counts[0] if counts else 0
        values = {name: as_tensor(value) for name, value in predictions[0].items()} if predictions else {}
        fields = {}
        for name in STACKED:
            if values.get(name) is None or any(pred.get(name) is None for pred in predictions):
                continue
            of_images = [as_tensor(pred[name]) for pred in predictions]
            shapes = [_shape(value) for value in of_images]
            if not shapes[0] or len(set(shapes)) > 1:
                raise ValueError(f'predictions.{name} must be tensors of one shape in all images, got {shapes}')
            fields[name] = torch.stack(of_images)
    dtypes = (value.dtype for value in values.values() if isinstance(value, Tensor) and value.is_floating_point())
    return num_preds, reduce(torch.promote_types, dtypes, torch.float32), fields


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor; of anything else that of a number."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _pad_ground_truths(
    labels: list[Tensor], gt_instances: Sequence[InstanceData], dtype: torch.dtype
) -> tuple[Tensor, Optional[Tensor]]:
    """Labels (B, M), and boxes (B, M, 4) if all images have some of that form."""
    if not labels:
        return torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, 4, dtype=dtype)
    boxes = [as_tensor(gt.get('bboxes')) for gt in gt_instances]
    boxes = [box if not isinstance(box, Tensor) or len(box) else box.reshape(0, 4) for box in boxes]
    if any(_shape(box)[1:] != (4,) for box in boxes):
        return pad(labels)[0], None
    gt_labels, gt_bboxes = pad(labels, boxes)
    return gt_labels, gt_bboxes.to(dtype)


def class_labels(gt_instances: Sequence[InstanceData]) -> list[Tensor]:
    """Labels of each image (M_i,) as int64, whatever integers they came as; without objects any dtype will do.

    Raises:
        TypeError: If there are none, or they are no integers.
        ValueError: If their shape is another.
    """
    found = []
    for index, gt in enumerate(gt_instances):
        labels = gt.get('labels')
        if isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.dim() == 1:
            found.append(labels)
            continue
        name = f'gt_instances.labels of image {index} of the batch'
        if not isinstance(labels, Tensor):
            raise TypeError(
                f'{name} must be a tensor of integers, got {"none" if labels is None else type(labels).__name__}; '
                f'gt_instances holds {sorted(gt.keys())}.'
            )
        if labels.dim() != 1 and labels.numel() != len(labels):
            raise ValueError(
                f'{name} must have shape ({len(gt)},), one class for each ground truth, got {tuple(labels.shape)}'
            )
        found.append(as_labels(labels, name).flatten())
    return found


def _real(of_images: Sequence[Tensor], padded: Tensor) -> Tensor:
    """False on padding, (B, M); M is the second size of ``padded``."""
    places = torch.arange(padded.size(1), device=padded.device)
    return places < to_device_of(places, [len(values) for values in of_images])[:, None]


def pad(*fields: Sequence[Tensor]) -> list[Tensor]:
    """From what each image has, (M_i, ...), to (B, M, ...), zero where an image has less; torch pads one at a time."""
    real = _real(fields[0], torch.empty(0, max(map(len, fields[0])), device=fields[0][0].device))
    padded = []
    for field in fields:
        values = torch.cat(list(field))
        mask = real.view(*real.shape, *[1] * (values.dim() - 1))
        padded.append(values.new_zeros(*real.shape, *values.shape[1:]).masked_scatter_(mask, values))
    return padded


def batch_cost(match_costs: Sequence, batch: Batch, out: Optional[Tensor] = None) -> Tensor:
    """Sum of the match costs.

    mmdet's ClassificationCost, FocalLossCost, BBoxL1Cost and IoUCost and our LogIoUCost, PriorCenterCost and
    InsideGTCost are computed for the whole batch at once; any other is called one image at a time.

    Args:
        match_costs: mmdet match costs, or any callables of their signature.
        batch: What :func:`make_batch` returns.
        out: Where to put the costs, (B, N, M), in the batch's dtype; it may be a part of a larger tensor.

    Returns:
        Costs in the batch's dtype, 0 on padding and on predictions that take no part, (B, N, M).

    Raises:
        ValueError: If a cost is not finite, naming the image, the cost and how many entries; if a cost reads what
            the head does not give; or if ``out`` or a mask has another shape or dtype.
    """
    _check_mask('gt_mask', batch.gt_mask, batch.shape[::2])
    _check_mask('pred_mask', batch.pred_mask, batch.shape[:2])
    if out is not None and (out.shape != batch.shape or out.dtype != batch.dtype or out.device != batch.device):
        raise ValueError(
            f'out must be {batch.dtype} of shape {batch.shape} on {batch.device}, as the batch is, got {out.dtype} of '
            f'shape {tuple(out.shape)} on {out.device}'
        )
    with torch.autocast(batch.device.type, enabled=False), torch.no_grad():
        if out is None:
            out = torch.empty(batch.shape, dtype=batch.dtype, device=batch.device)
        if not out.numel():
            return out  # and no complaint about what the costs would need
        bad = _sum_compiled(match_costs, batch, out)
        if bad is None:
            total = zero_padding(sum(_term(cost, batch) for cost in match_costs), batch.gt_mask, batch.pred_mask)
            out.copy_(total)
            # A sum is not finite if an entry is not, and takes one pass; that of finite entries overflows rarely.
            bad = ~torch.isfinite(total.sum())
    act_if(torch.as_tensor(bad), lambda: _raise_not_finite(match_costs, batch, out))
    return out


COSTS = Kernel(
    'uotod_costs',
    'terms: f64[T 6], T, boxes: f32[B N 4]?, gt_boxes: f32[B M 4]?, scores: f32[B N C]?, C, labels: i64[B M]?, '
    'sizes: f32[B 4]?, given: f32[B N M]?, gt_mask: bool[B M], pred_mask: bool[B N]?, B, N, M, cost: f32[B N M]~, '
    'cost.stride',
)
_GIVEN, _IOU, _GIOU, _LOG_IOU, _L1, _SOFTMAX, _FOCAL = range(7)  # enum Kind of csrc/costs.cpp


def _sum_compiled(match_costs: Sequence, batch: Batch, out: Tensor) -> Optional[bool]:
    """Sum the costs to ``out`` by csrc/costs.cpp; whether an entry is not finite, None if the kernel does not fit."""
    inputs = dict(boxes=batch.bboxes, gt_boxes=batch.gt_bboxes, scores=None, labels=None, sizes=None, given=None)
    inputs.update(gt_mask=batch.gt_mask, pred_mask=batch.pred_mask, cost=out)
    if not COSTS.takes(**inputs):
        return None
    has_boxes = batch.bboxes is not None and batch.gt_bboxes is not None
    classes = dict(scores=batch.scores, labels=batch.gt_labels)
    classes_fit = batch.scores is not None and COSTS.takes(**classes)
    terms, others = [], []
    for match_cost in match_costs:
        kind, weight = type(match_cost), getattr(match_cost, 'weight', 1.0)
        if kind is IoUCost and match_cost.iou_mode in ('iou', 'giou') and has_boxes:
            terms.append((_IOU if match_cost.iou_mode == 'iou' else _GIOU, -weight, 0, 0, 0, 0))
        elif kind is LogIoUCost and has_boxes:
            terms.append((_LOG_IOU, -weight, match_cost.eps, 0, 0, 0))
        elif kind is BBoxL1Cost and has_boxes:
            inputs['sizes'] = _image_sizes(batch)
            terms.append((_L1, weight, 0, 0, 0, match_cost.box_format == 'xywh'))
        elif kind is ClassificationCost and classes_fit:
            inputs.update(classes)
            terms.append((_SOFTMAX, -weight, 0, 0, 0, 0))
        elif kind is FocalLossCost and not match_cost.binary_input and classes_fit:
            inputs.update(classes)
            terms.append((_FOCAL, weight, match_cost.eps, match_cost.alpha, match_cost.gamma, 0))
        else:
            others.append(_term(match_cost, batch))
    if others:
        inputs['given'] = sum(others).to(out.dtype).contiguous()
        terms.append((_GIVEN, 1, 0, 0, 0, 0))
    return bool(COSTS(terms=torch.tensor(terms, dtype=torch.float64).view(-1, 6), **inputs))


def _check_mask(name: str, mask: Any, shape: tuple[int, int]) -> None:
    """Check that a mask, None if there is none, is bool of the shape.

    Raises:
        ValueError: If not.
    """
    if mask is not None and (_shape(mask) != shape or mask.dtype != torch.bool):
        came = f'{mask.dtype} of shape {tuple(mask.shape)}' if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f'{name} must be bool of shape {shape}, got {came}')


def zero_padding(cost: Tensor, gt_mask: Tensor, pred_mask: Optional[Tensor]) -> Tensor:
    """Cost (B, N, M) with 0 where ``gt_mask`` (B, M) or ``pred_mask`` (B, N) is False, whatever it held there."""
    if host_may_wait(cost) and gt_mask.all() and (pred_mask is None or pred_mask.all()):
        return cost  # a look at the masks is cheaper than a pass over the cost; on a GPU it would make the host wait
    real = gt_mask[:, None] if pred_mask is None else gt_mask[:, None] & pred_mask[:, :, None]
    return torch.where(real, cost, 0)


def _real_pairs(batch: Batch) -> Tensor:
    """False on padding, (B, N, M) or (B, 1, M)."""
    real = batch.gt_mask[:, None]
    return real if batch.pred_mask is None else real & batch.pred_mask[:, :, None]


def _term(match_cost: Any, batch: Batch) -> Tensor:
    """One match cost of the batch, (B, N, M), anything on padding."""
    compute, needs = _BATCHED.get(type(match_cost), (_one_image_at_a_time, ()))
    if type(match_cost) is FocalLossCost and match_cost.binary_input:  # of masks
        compute, needs = _one_image_at_a_time, ()
    for name in needs:
        if getattr(batch, name) is None:
            _raise_missing(match_cost, name, batch)
    return compute(match_cost, batch)


def _raise_missing(match_cost: Any, name: str, batch: Batch) -> NoReturn:
    name, shape = {
        'scores': ('scores', '(N, C)'),
        'gt_bboxes': ('bboxes of ground truths', '(M, 4)'),
    }.get(name, (name, '(N, 4)'))
    suits = 'leave the cost out, or use a prediction-aware head'
    if name == 'priors':
        suits = 'it suits heads with anchors or points, not query-based ones such as DETRHead'
    raise ValueError(
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
        if _shape(cost) != (batch.num_preds, len(gt)):
            came = f'a cost of shape {tuple(cost.shape)}' if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(
                f'{type(match_cost).__name__} answered with {came} for '
                f'{batch.num_preds} predictions and {len(gt)} ground truths'
            )
        term[index, :, : len(gt)] = cost
    return term


def _with(instances: InstanceData, values: dict[str, Tensor]) -> InstanceData:
    """The instances with ``values`` and without half precision; boxes that are not horizontal stay for their costs."""
    fields = dict(instances.items())
    for name, value in fields.items():
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            fields[name] = value.float()  # autocast is off
    for name, value in values.items():
        if not isinstance(fields.get(name), BaseBoxes) or isinstance(fields[name], HorizontalBoxes):
            fields[name] = value
    return InstanceData(metainfo=dict(instances.metainfo_items()), **fields)


def _classification(match_cost: ClassificationCost, batch: Batch) -> Tensor:
    return -match_cost.weight * _of_gt_class(batch.scores.softmax(-1), batch)


def _focal(match_cost: FocalLossCost, batch: Batch) -> Tensor:
    prob = _of_gt_class(batch.scores, batch).sigmoid()
    alpha, gamma, eps = match_cost.alpha, match_cost.gamma, match_cost.eps
    negative = -(1 - prob + eps).log() * (1 - alpha) * prob.pow(gamma)
    positive = -(prob + eps).log() * alpha * (1 - prob).pow(gamma)
    return match_cost.weight * (positive - negative)


def _of_gt_class(values: Tensor, batch: Batch) -> Tensor:
    """From (B, N, C) the column of each ground truth's class, (B, N, M)."""
    return values.gather(2, batch.gt_labels[:, None].expand(-1, values.size(1), -1))


def _box_l1(match_cost: BBoxL1Cost, batch: Batch) -> Tensor:
    sizes = _image_sizes(batch)[:, None]
    boxes, gt_bboxes = batch.bboxes, batch.gt_bboxes
    if match_cost.box_format == 'xywh':
        boxes, gt_bboxes = bbox_xyxy_to_cxcywh(boxes), bbox_xyxy_to_cxcywh(gt_bboxes)
    total = None  # one coordinate at a time: torch.cdist(p=1) is slow on GPUs
    for own, gt in zip((boxes / sizes).unbind(-1), (gt_bboxes / sizes).unbind(-1)):
        distance = (own[:, :, None] - gt[:, None, :]).abs_()
        total = distance if total is None else total.add_(distance)
    return total.mul_(match_cost.weight)


def _image_sizes(batch: Batch) -> Tensor:
    """Width, height, width, height of each image, (B, 4)."""
    if not all('img_shape' in meta for meta in batch.img_metas):
        raise ValueError('BBoxL1Cost needs img_meta with img_shape, which this head does not give the assigner.')
    sizes = [[w, h, w, h] for h, w in (meta['img_shape'][:2] for meta in batch.img_metas)]
    return to_device_of(batch.bboxes, sizes)


def _iou(match_cost: IoUCost, batch: Batch) -> Tensor:
    if match_cost.iou_mode == 'iof':
        return -match_cost.weight * bbox_overlaps(batch.bboxes, batch.gt_bboxes, mode='iof')
    return pairwise_overlaps(batch.bboxes, batch.gt_bboxes, match_cost.iou_mode).mul_(-match_cost.weight)


def _log_iou(match_cost: LogIoUCost, batch: Batch) -> Tensor:
    return match_cost.cost(batch.bboxes, batch.gt_bboxes)


def _prior(match_cost: PriorCost, batch: Batch) -> Tensor:
    return match_cost.cost(batch.priors, batch.gt_bboxes)


# How a cost is computed for a batch, and the fields it needs. By exact type: a subclass may compute something else.
_BATCHED: dict[type, tuple[Callable[[Any, Batch], Tensor], tuple[str, ...]]] = {
    ClassificationCost: (_classification, ('scores',)),
    FocalLossCost: (_focal, ('scores',)),
    BBoxL1Cost: (_box_l1, ('bboxes', 'gt_bboxes')),
    IoUCost: (_iou, ('bboxes', 'gt_bboxes')),
    LogIoUCost: (_log_iou, ('bboxes', 'gt_bboxes')),
    PriorCenterCost: (_prior, ('priors', 'gt_bboxes')),
    InsideGTCost: (_prior, ('priors', 'gt_bboxes')),
    PriorIoUCost: (_prior, ('priors', 'gt_bboxes')),
}


def _check_labels(gt_labels: Tensor, scores: Optional[Tensor], num_classes: Optional[int]) -> None:
    if not gt_labels.numel() or (scores is None and num_classes is None):
        return
    classes = scores.size(-1) if num_classes is None else num_classes
    there_are = f'the scores have {classes} classes' if num_classes is None else f'num_classes={classes}'

    def complain() -> None:
        raise ValueError(
            f'gt_instances.labels holds {gt_labels.min().item()} to {gt_labels.max().item()}, but {there_are}, so that '
            f'labels are 0 to {classes - 1}: count labels from 0, set num_classes of the head to the number of classes '
            "of the data set, and check the data set's metainfo."
        )

    act_if(((gt_labels < 0) | (gt_labels >= classes)).any(), complain)


def _raise_not_finite(match_costs: Sequence, batch: Batch, total: Tensor) -> None:
    if torch.isfinite(total).all():
        return  # only the sum of finite entries overflowed
    index = int((~torch.isfinite(total)).flatten(1).any(1).nonzero()[0])
    name, bad = 'the sum of the match costs', int((~torch.isfinite(total[index])).sum())
    for match_cost in match_costs:
        term = torch.where(_real_pairs(batch)[index], _term(match_cost, batch)[index], 0)
        if not torch.isfinite(term).all():
            name, bad = type(match_cost).__name__, int((~torch.isfinite(term)).sum())
            break
    num_pairs = int(_real_pairs(batch)[index].expand_as(total[index]).sum())
    image = batch.img_metas[index].get('img_path', 'an image' if len(total) == 1 else f'image {index} of the batch')
    raise ValueError(
        f'{name} is not finite at {bad} of {num_pairs} pairs of prediction and '
        f'ground truth of {image}. Usual causes: a model that has diverged (lower the learning rate, or clip '
        "gradients with optim_wrapper.clip_grad=dict(max_norm=...)), fp16 overflow, or NaN in the annotations' boxes."
    )
