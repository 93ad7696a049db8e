"""A batch of images as the match costs see it: stacked predictions, padded ground truths."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Optional, Union

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.ops import act_if

from .boxes import as_tensor
from .ground_truths import class_labels, pad, real_places, stack_masks
from .priors import prior_boxes

BOX_SOURCES = ('auto', 'bboxes', 'priors')
STACKED = ('bboxes', 'scores', 'priors')


class Batch(NamedTuple):
    """Predictions and padded ground truths of B images; boxes and scores in one dtype, float32 or float64."""

    bboxes: Optional[Tensor]  # (B, N, 4) xyxy pixels, predicted or priors as box_source says
    scores: Optional[Tensor]  # (B, N, C) as the head gives them, see score_format
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
    num_gts: int  # of all images, those without area included
    dtype: torch.dtype  # of costs and plans
    prior_format: str = 'auto'  # 'anchor' or 'point', as the head says; 'auto': inferred from the values of the priors
    score_format: str = 'auto'  # 'logits' or 'probabilities', as the head says; 'auto': unknown
    masks: Optional[Tensor] = None  # (B, N, P) logits at P points of each image, or at all pixels
    gt_masks: Optional[Tensor] = None  # (G, M, P) at the same points, 0 on padding; image b has those of b modulo G
    num_layers: Optional[int] = None  # decoder layers whose images follow one another in B; None: the head has none

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

    def with_logits(self) -> 'Batch':
        """The batch with scores that the head calls probabilities as logits, which is what match costs read."""
        if self.scores is None or self.score_format != 'probabilities':
            return self
        if isinstance(self.predictions, Mapping):
            predictions: Any = {**self.predictions, 'scores': as_logits(self.predictions['scores'])}
        else:
            predictions = [InstanceData(**{**dict(p.items()), 'scores': as_logits(p.scores)}) for p in self.predictions]
        return self._replace(scores=as_logits(self.scores), predictions=predictions, score_format='logits')

    def given(self) -> str:
        """Which fields predictions and ground truths hold, for messages."""
        if isinstance(self.predictions, Mapping) or not self.predictions:
            of_preds = sorted(self.predictions)
        else:
            of_preds = sorted(self.predictions[0].keys())
        return f'{of_preds} of predictions and {sorted(self.gt_instances[0].keys())} of ground truths'


def as_logits(probabilities: Tensor) -> Tensor:
    """Probabilities as logits, of at most 13.8 in size."""
    return probabilities.logit(eps=1e-6)


def make_batch(
    predictions: Union[Sequence[InstanceData], Mapping[str, Any]],
    gt_instances: Sequence[InstanceData],
    img_metas: Optional[Sequence[Optional[dict]]] = None,
    box_source: str = 'auto',
    gt_instances_ignore: Optional[Sequence[Optional[InstanceData]]] = None,
    pred_mask: Optional[Tensor] = None,
    num_classes: Optional[int] = None,
    prior_format: str = 'auto',
    score_format: str = 'auto',
    repeats: Optional[int] = None,
) -> Batch:
    """Stack the predictions and pad the ground truths of a batch of images.

    Boxes may be tensors or mmdet's box types, of any dtype. Fields that are not listed, such as points, reach the costs
    that are called one image at a time as they are; so do masks that are not stacked.

    Args:
        predictions: For each of B images N predictions with what the costs read: ``scores`` (N, C), ``bboxes``
            (N, 4), ``priors`` (N, 4), ``masks`` (N, ...); boxes in pixels. Or the same stacked: a mapping of these
            names to (B, N, ...).
        gt_instances: For each image its ground truths: ``labels`` (M_i,) of any integer dtype, ``bboxes`` (M_i, 4)
            pixels, ``masks`` (M_i, ...).
        img_metas: Meta information of each image; BBoxL1Cost reads ``img_shape``.
        box_source: What the costs see as ``bboxes``: 'bboxes', 'priors', or 'auto' (priors where there are no bboxes).
        gt_instances_ignore: For each image its ignored (crowd) boxes, ``bboxes`` (I_i, 4) pixels, or None.
        pred_mask: False on predictions that take no part, such as anchors on the padding of an image, (B, N).
        num_classes: Number of foreground classes, labels 0 to num_classes - 1. None: as many as the scores' columns.
        prior_format: What the priors are: 'anchor' (x1, y1, x2, y2) or 'point' (x, y, stride_x, stride_y). 'auto', for
            callers of ``assign``, which do not say: inferred, see :func:`~uotod_mmdet.costs.prior_centers_and_sizes`.
        score_format: What the scores are: 'logits', or 'probabilities', which the costs get as logits. 'auto': unknown;
            costs take them as mmdet's do.
        repeats: How many times the images follow one another in stacked predictions (repeats * B, N, .), once for each
            of a head's decoder layers. All other arguments are of B images. None: once, in a head without layers.

    Raises:
        TypeError: If labels are not integers.
        ValueError: If ``box_source`` does not fit the predictions, the images differ in number or shape of predictions,
            the arguments in number of images, a mask has a wrong shape or dtype, or a label is not a foreground class.
    """
    labels = class_labels(gt_instances)
    num_preds, dtype, fields = _stack(predictions)
    num_layers, repeats = repeats, repeats or 1
    _check_counts(len(labels), repeats, fields, predictions, img_metas, gt_instances_ignore)
    bboxes, scores, priors = (
        fields[name].detach().to(dtype).contiguous() if name in fields else None for name in STACKED
    )
    # Proposals of a first stage carry one score each, not one for each class.
    scores = scores if scores is not None and scores.dim() == 3 else None
    bboxes, priors = (boxes if boxes is not None and boxes.shape[2:] == (4,) else None for boxes in (bboxes, priors))
    if (bboxes if box_source == 'bboxes' else priors) is None and box_source != 'auto':
        raise ValueError(
            f'box_source={box_source!r} does not fit predictions that hold {sorted(fields)}: this head gives the '
            f"assigner no {box_source} (N, 4); use 'auto'."
        )
    if priors is not None and (box_source == 'priors' or 'bboxes' not in fields):
        bboxes = prior_boxes(priors, prior_format)
    gt_labels, gt_bboxes = _pad_ground_truths(labels, gt_instances, dtype)
    if not all('positive_maps' in gt for gt in gt_instances):  # these map ground truths to scores of text tokens
        _check_labels(gt_labels, scores, num_classes)
    if not labels and fields and gt_bboxes is not None:
        gt_labels, gt_bboxes = (values.to(next(iter(fields.values())).device) for values in (gt_labels, gt_bboxes))
    if bboxes is not None and gt_bboxes is not None:
        gt_mask = (gt_bboxes[..., 2:] > gt_bboxes[..., :2]).all(-1)
    else:
        gt_mask = real_places(labels, gt_labels)
    metas = [_with_plain_shape(meta or {}) for meta in img_metas or [None] * len(labels)]
    ignored = list(gt_instances_ignore or [None] * len(labels))
    num_gts = sum(map(len, labels))
    masks, gt_masks = stack_masks(predictions, gt_instances, dtype)
    if repeats > 1:
        # torch.cat takes a quarter of the time of Tensor.repeat.
        gt_labels, gt_mask = torch.cat([gt_labels] * repeats), torch.cat([gt_mask] * repeats)
        gt_bboxes = None if gt_bboxes is None else torch.cat([gt_bboxes] * repeats)
        gt_instances, metas, ignored = list(gt_instances) * repeats, metas * repeats, ignored * repeats
    check_mask('pred_mask', pred_mask, (len(gt_mask), num_preds))
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
        gt_instances_ignore=ignored,
        img_metas=metas,
        num_preds=num_preds,
        num_gts=num_gts * repeats,
        dtype=dtype,
        prior_format=prior_format,
        score_format=score_format,
        masks=masks,
        gt_masks=gt_masks,
        num_layers=num_layers,
    )


def _check_counts(
    num_images: int,
    repeats: int,
    fields: dict[str, Tensor],
    predictions: Union[Sequence[InstanceData], Mapping[str, Any]],
    img_metas: Optional[Sequence],
    gt_instances_ignore: Optional[Sequence],
) -> None:
    of_preds: dict[str, Any] = dict(fields)
    if not fields and not isinstance(predictions, Mapping):
        of_preds = dict(predictions=predictions)
    counts = {name: len(of_images) for name, of_images in of_preds.items()}
    given = dict(img_metas=img_metas, gt_instances_ignore=gt_instances_ignore)
    others = {name: len(of_images) for name, of_images in given.items() if of_images is not None}
    if any(count != num_images * repeats for count in counts.values()) or any(
        count != num_images for count in others.values()
    ):
        times = f' {repeats} times' if repeats > 1 else ''
        raise ValueError(
            f'gt_instances are of {num_images} images{times}, but there are {dict(counts, **others)}: one entry for '
            'each image of the batch is needed.'
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
            found = [_shape(value) for value in of_images]
            if not found[0] or len(set(found)) > 1:
                raise ValueError(f'predictions.{name} must be tensors of one shape in all images, got {found}')
            fields[name] = torch.stack(of_images)
    dtypes = (value.dtype for value in values.values() if isinstance(value, Tensor) and value.is_floating_point())
    return num_preds, reduce(torch.promote_types, dtypes, torch.float32), fields


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor; () for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _pad_ground_truths(
    labels: list[Tensor], gt_instances: Sequence[InstanceData], dtype: torch.dtype
) -> tuple[Tensor, Optional[Tensor]]:
    """Labels (B, M), and boxes (B, M, 4) if all images have some of that form."""
    if not labels:
        return torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, 4, dtype=dtype)
    boxes = [as_tensor(gt.get('bboxes')) for gt in gt_instances]
    for index, box in enumerate(boxes):
        if not isinstance(box, Tensor) or box.dim() != 2 or box.size(1) != 4:
            if not isinstance(box, Tensor) or box.numel() or len(box):
                return pad(labels)[0], None
            boxes[index] = box.reshape(0, 4)
    gt_labels, gt_bboxes = pad(labels, boxes)
    return gt_labels, gt_bboxes.to(dtype)


def check_mask(name: str, mask: Any, shape: tuple[int, int]) -> None:
    """Check that a mask, None if there is none, is bool of the shape.

    Raises:
        ValueError: If not.
    """
    if mask is not None and (getattr(mask, 'shape', None) != shape or mask.dtype != torch.bool):
        came = f'{mask.dtype} of shape {tuple(mask.shape)}' if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f'{name} must be bool of shape {shape}, got {came}')


def _check_labels(gt_labels: Tensor, scores: Optional[Tensor], num_classes: Optional[int]) -> None:
    if num_classes is not None:
        classes, there_are = num_classes, f'num_classes={num_classes}'
    elif scores is not None:
        classes, there_are = scores.size(-1), f'the scores have {scores.size(-1)} classes'
    else:
        return
    if not gt_labels.numel():
        return

    def complain() -> None:
        raise ValueError(
            f'gt_instances.labels holds {gt_labels.min().item()} to {gt_labels.max().item()}, but {there_are}, so that '
            f'labels are 0 to {classes - 1}: count labels from 0, set num_classes of the head to the number of classes '
            "of the data set, and check the data set's metainfo."
        )

    act_if((gt_labels != gt_labels.clamp(0, classes - 1)).any(), complain)
