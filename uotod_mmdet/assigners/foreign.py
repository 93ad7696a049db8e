"""mmdet's assigners, and those of others, as matchers of a batch: an AssignResult is a plan of zeros and ones."""

import inspect
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmdet.models.task_modules.assigners import (
    ApproxMaxIoUAssigner,
    AssignResult,
    ATSSAssigner,
    CenterRegionAssigner,
    DynamicSoftLabelAssigner,
    GridAssigner,
    MaxIoUAssigner,
    MultiInstanceAssigner,
    PointAssigner,
    RegionAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
    TopkHungarianAssigner,
    UniformAssigner,
)
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import Batch, as_logits, ignored_boxes

from .base import TransportAssigner
from .matching import Matching

_OF_ONE_HEAD = {
    ApproxMaxIoUAssigner: 'the groups of approximate anchors of GARetinaHead and SABLRetinaHead',
    GridAssigner: 'the responsible cells of YOLOV3Head',
    MultiInstanceAssigner: 'proposals that predict several boxes each, as those of MultiInstanceRoIHead',
    RegionAssigner: "the feature maps' sizes and strides that StageCascadeRPNHead hands over",
}
_OF_POINTS = (DynamicSoftLabelAssigner, PointAssigner, SimOTAAssigner)
_OF_ANCHORS = (ATSSAssigner, CenterRegionAssigner, MaxIoUAssigner, TaskAlignedAssigner, UniformAssigner)
_OF_FLOAT32 = (DynamicSoftLabelAssigner, SimOTAAssigner)  # which write into tensors of that dtype
_OF_PROBABILITIES = (SimOTAAssigner, TaskAlignedAssigner)
_OF_PRIORS = (*_OF_POINTS, *_OF_ANCHORS)


def check_assigner(assigner: Any, priors: Optional[str]) -> None:
    """Check that an assigner of mmdet can work with the inputs of a head; other assigners cannot be checked here.

    Args:
        assigner: Any assigner.
        priors: What priors there are: 'anchors', 'points' with strides, or None.

    Raises:
        ValueError: If the assigner reads something that the head does not have.
    """
    reads = next((what for kind, what in _OF_ONE_HEAD.items() if isinstance(assigner, kind)), None)
    instead = "take an assigner of ours, or mmdet's HungarianAssigner"
    if reads is None and isinstance(assigner, _OF_POINTS) and priors == 'anchors':
        reads = "priors as points with strides, and this head's are anchors (x1, y1, x2, y2)"
        instead = "use dict(type='uotod_mmdet.OTAAssigner') instead"
    elif reads is None and isinstance(assigner, _OF_ANCHORS) and priors == 'points':
        reads = "priors as anchors (x1, y1, x2, y2), and this head's are points (x, y, stride, stride)"
        instead = "take an assigner of ours, or mmdet's DynamicSoftLabelAssigner or SimOTAAssigner"
    elif reads is None and isinstance(assigner, _OF_PRIORS) and not isinstance(assigner, TopkHungarianAssigner):
        reads = None if priors else 'priors, which a head of queries does not have'
    elif reads is not None:
        reads += ', which this head does not have'
        instead += ", or mmdet's MaxIoUAssigner or ATSSAssigner" if priors else ''
    if reads is not None:
        raise ValueError(f'{type(assigner).__name__} reads {reads}: {instead}.')


class ForeignAssigner:
    """An assigner of mmdet's or of others as a matcher of a batch, one image at a time.

    Args:
        assigner: The assigner; its AssignResult is read as 0 background, -1 a zero row.
        **known: Further arguments of ``assigner.assign``, such as the alpha and beta of TOODHead.
    """

    box_source = 'auto'

    def __init__(self, assigner: Any, **known: Any) -> None:
        self.assigner = assigner
        self.known = known
        by_priors = isinstance(assigner, (ATSSAssigner, CenterRegionAssigner, MaxIoUAssigner))
        self.reads_boxes = not by_priors or getattr(assigner, 'alpha', None) is not None

    @torch.no_grad()
    def match_batch(self, batch: Batch, num_level_priors: Optional[Sequence[int]] = None) -> Matching:
        """Match a batch of images.

        Args:
            batch: What :func:`~uotod_mmdet.costs.make_batch` returns.
            num_level_priors: Number of priors of each pyramid level, which mmdet's ATSSAssigner reads.

        Raises:
            ValueError: If the assigner returns another shape, or reads something that the head does not give.
        """
        assigner, shape = self.assigner, (*batch.shape[:2], batch.shape[2] + 1)
        check_assigner(assigner, _priors_of(batch, assigner))
        plan = torch.zeros(shape, dtype=batch.dtype, device=batch.device)
        for index, gts in enumerate(batch.gt_instances):
            # Tensors of one dtype, from any box types and dtypes of the data set.
            plain = dict(gts.items(), labels=batch.gt_labels[index, : len(gts)])
            if batch.gt_bboxes is not None:
                plain['bboxes'] = batch.gt_bboxes[index, : len(gts)]
            gts = InstanceData(**plain)
            ignored = batch.gt_instances_ignore[index]
            if ignored is not None:
                ignored = InstanceData(**{**dict(ignored.items()), 'bboxes': ignored_boxes(ignored).to(plan)})
            predictions = batch.pred_instances(index)
            inside = torch.arange(shape[1], device=plan.device)
            if batch.pred_mask is not None:
                inside = batch.pred_mask[index].nonzero().squeeze(1)
                predictions = predictions[inside]
            if batch.score_format == 'probabilities':
                if not isinstance(assigner, _OF_PROBABILITIES):
                    predictions.scores = as_logits(predictions.scores)
            elif isinstance(assigner, _OF_PROBABILITIES):
                predictions.scores = predictions.scores.sigmoid()
            if isinstance(assigner, _OF_FLOAT32):
                predictions, gts = _in_float32(predictions), _in_float32(gts)
            if isinstance(assigner, UniformAssigner):
                predictions.decoder_priors = predictions.bboxes
            elif not self.reads_boxes:
                for name in ('bboxes', 'scores'):
                    predictions.pop(name, None)
            known = dict(
                gt_instances=gts,
                gt_instances_ignore=ignored,
                img_meta=batch.img_metas[index],
                num_level_priors=_num_level_priors(num_level_priors, batch.pred_mask, index),
                **self.known,
            )
            gt_inds = _assign(assigner, predictions, known).gt_inds
            if gt_inds.shape != inside.shape or (len(gt_inds) and not -1 <= gt_inds.min() <= gt_inds.max() <= len(gts)):
                raise ValueError(
                    f'{type(assigner).__name__} answered with gt_inds of shape {tuple(gt_inds.shape)} for '
                    f'{len(inside)} predictions, or with an index outside -1 (ignored), 0 (background), 1 to '
                    f'{len(gts)}.'
                )
            kept = gt_inds >= 0
            plan[index, inside[kept], (gt_inds[kept] - 1) % shape[2]] = 1
        return Matching(plan, None, None)


def _in_float32(instances: InstanceData) -> InstanceData:
    """The instances with tensors of float64 as float32."""
    fields = {
        name: value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
        for name, value in instances.items()
    }
    return InstanceData(**fields)


def batch_matcher(assigner: Any, **known: Any) -> Union[TransportAssigner, ForeignAssigner]:
    """The matcher of a batch: an assigner of ours itself, any other assigner in a :class:`ForeignAssigner`."""
    return assigner if isinstance(assigner, TransportAssigner) else ForeignAssigner(assigner, **known)


def _priors_of(batch: Batch, assigner: Any) -> Optional[str]:
    """Kind of the priors of a batch.

    Where the head does not say: points if the assigner reads points and the last two columns are equal, else anchors.
    """
    if batch.priors is None or batch.prior_format != 'auto':
        return {'anchor': 'anchors', 'point': 'points'}.get(batch.prior_format) if batch.priors is not None else None
    points = isinstance(assigner, _OF_POINTS) and (batch.priors[..., 2] == batch.priors[..., 3]).all()
    return 'points' if points else 'anchors'


def _assign(assigner: Any, predictions: InstanceData, known: dict[str, Any]) -> AssignResult:
    """Call ``assign`` with the entries of ``known`` that are among its parameters."""
    if isinstance(assigner, TopkHungarianAssigner):
        gts = known['gt_instances']
        return assigner.assign(predictions.scores, predictions.bboxes, gts.bboxes, gts.labels, known['img_meta'])
    first, *accepted = inspect.signature(assigner.assign).parameters.values()
    missing = [p.name for p in accepted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [name for name in missing if name not in known]
    if missing:
        raise ValueError(f'{type(assigner).__name__}.assign needs {", ".join(missing)}, which this head does not give.')
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        known = {parameter.name: known[parameter.name] for parameter in accepted if parameter.name in known}
    try:
        return assigner.assign(predictions, **known)
    except AttributeError as error:
        raise ValueError(
            f'{type(assigner).__name__} reads what this head does not give ({error}): predictions hold '
            f'{", ".join(sorted(predictions.keys()))}, ground truths {", ".join(sorted(known["gt_instances"].keys()))}.'
        ) from error
    except (ValueError, RuntimeError) as error:  # of scipy and torch for numbers that are not finite
        sides = dict(predictions=predictions, gt_instances=known.get('gt_instances', {}))
        for side, name, value in ((side, *field) for side, fields in sides.items() for field in fields.items()):
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise ValueError(
                    f'{type(assigner).__name__} failed ({error}): {name} of {side} hold '
                    f'{int((~value.isfinite()).sum())} NaN or infinite of {value.numel()} entries. Usual causes: a '
                    'model that has diverged (lower the learning rate, or clip gradients), or fp16 overflow.'
                ) from error
        raise


def _num_level_priors(
    num_level_priors: Optional[Sequence[int]], pred_mask: Optional[Tensor], index: int
) -> Optional[Sequence[int]]:
    """Number of priors of each level that take part."""
    if num_level_priors is None or pred_mask is None:
        return num_level_priors
    return [int(inside.sum()) for inside in pred_mask[index].split(list(num_level_priors))]
