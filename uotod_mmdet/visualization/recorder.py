"""Record what a head hands to its assigner, and what comes back."""

import contextlib
import copy
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn

from uotod_mmdet.assigners import ForeignAssigner, TransportAssigner
from uotod_mmdet.costs import Batch, make_batch


class Record(NamedTuple):
    """The matching of one image in one layer of a head: N predictions, M ground truths."""

    layer: str
    """'d0', 'd1', ... of decoder layers, 'last' of the last or only one, 'enc' of a two-stage model's proposals."""
    batch: Batch
    """What was matched, of one image; those of its predictions take no part that ``batch.pred_mask`` leaves out."""
    cost: Optional[Tensor]
    """(N, M); None: the assigner returns no costs, as mmdet's do."""
    plan: Tensor
    """(N, M + 1), last column the background; of an assigner of mmdet's 0 and 1, and 0 in rows without a loss."""
    levels: Optional[Tensor]
    """Pyramid level of each prediction of a dense head, (N,), from 0, the finest; None: not known, or none."""


def why_not(model: nn.Module) -> Optional[str]:
    """A sentence on why the matching of a detector cannot be recorded; None: it can be.

    Heads of ours and of mmdet's can be, with assigners of either. Detectors of several stages (Faster R-CNN), of masks
    (Mask2Former), and heads that match by rules of their own (mmdet's FCOSHead) cannot.
    """
    model = unwrapped(model)
    head = getattr(model, 'bbox_head', None)
    if head is None or not _matchers(head):
        what = type(model).__name__ if head is None else f'{type(model).__name__} with {type(head).__name__}'
        return f'{what} has no bbox_head with an assigner: its matching cannot be shown.'
    return None


def matchings_of(model: Any, items: Sequence[dict], seed: int = 0) -> list[list[Record]]:
    """The matchings of a detector on images, as in a training step in which nothing but the weights matters.

    The losses are computed without gradients, one image at a time. All modules are as in evaluation (running statistics
    of BatchNorm, no dropout), and there are no batch augments. Random numbers, such as those of DINO's denoising,
    follow from ``seed``. Neither modes of modules, BatchNorm's statistics nor the state of any random generator change.

    In distributed training every process must call this with the same images: heads average the divisors of their
    losses over the processes.

    Args:
        model: The detector, or its wrapper for distributed training.
        items: What :func:`~uotod_mmdet.visualization.fixed_items` returns: for each image ``inputs``, (3, H, W), and
            ``data_samples`` with its ground truths. They are left as they are.
        seed: Seed of the random numbers, the same for each image.

    Returns:
        For each image a list of :class:`Record`, on the model's device: of a head of queries one for each decoder
        layer, in their order, then that of the encoder's proposals in two-stage models; of a dense head one. None of an
        image without ground truths in heads that do not ask their assigner then, as mmdet's YOLOXHead.

    Raises:
        ValueError: If the matching of this detector cannot be recorded; see :func:`why_not`.
    """
    model = unwrapped(model)
    refusal = why_not(model)
    if refusal:
        raise ValueError(refusal)
    head, preprocess = model.bbox_head, model.data_preprocessor
    device = next(model.parameters()).device
    of_images = []
    with torch.no_grad(), _training_as_evaluation(model):
        for item in items:
            with _fixed_randomness(seed, device), record(head) as seen:
                sample = copy.deepcopy(item['data_samples'])
                data = preprocess(dict(inputs=[item['inputs']], data_samples=[sample]), True)
                model(**data, mode='loss')
            of_images.append(_with_layers(head, seen))
    return of_images


@contextlib.contextmanager
def record(head: nn.Module) -> Iterator[list[Record]]:
    """Record each matching that a head asks for within the ``with`` block, one entry of the list for each image.

    The images of a layer follow one another, and the layers likewise; ``layer`` is empty. Outside the block the
    assigners are what they were.

    Args:
        head: A head with an assigner, of ours or of mmdet's.
    """
    seen: list[Record] = []
    with contextlib.ExitStack() as stack:
        for matcher in _matchers(head):
            if isinstance(matcher, (TransportAssigner, ForeignAssigner)):
                stack.enter_context(_replaced(matcher, 'match_batch', _recording_batches(matcher, seen)))
            if not isinstance(matcher, ForeignAssigner):
                stack.enter_context(_replaced(matcher, 'assign', _recording_images(matcher, seen)))
        yield seen


def unwrapped(model: Any) -> Any:
    """The detector inside wrappers for distributed training."""
    while is_model_wrapper(model):
        model = model.module
    return model


def _matchers(head: nn.Module) -> list:
    """What a head asks for matchings: of ours matchers of batches, of mmdet's assigners; TOODHead has two."""
    ours, theirs = ('matcher', 'alignment_matcher'), ('assigner', 'initial_assigner', 'alignment_assigner')
    names = ours if hasattr(head, 'matcher') else theirs
    found = {id(getattr(head, name)): getattr(head, name) for name in names if getattr(head, name, None) is not None}
    return list(found.values())


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an instance replaced for a while."""
    missing = object()
    before = vars(owner).get(name, missing)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before


def _recording_batches(matcher: Any, seen: list[Record]) -> Callable:
    """``match_batch`` of a matcher that appends to ``seen``."""
    original = matcher.match_batch

    def match_batch(batch: Batch, num_level_priors: Optional[Sequence[int]] = None, *args: Any) -> Any:
        found = original(batch, num_level_priors, *args)
        for index, gts in enumerate(batch.gt_instances):
            single = make_batch(
                [batch.pred_instances(index)],
                [gts],
                [batch.img_metas[index]],
                matcher.box_source,
                [batch.gt_instances_ignore[index]],
                None if batch.pred_mask is None else batch.pred_mask[index : index + 1],
                prior_format=batch.prior_format,
                score_format=batch.score_format,
            )
            cost = None if found.cost is None else found.cost[index, :, : len(gts)].clone()
            plan = found.plan[index][:, [*range(len(gts)), -1]]  # without the padding
            seen.append(Record('', single, cost, plan, _levels(single, num_level_priors)))
        return found

    return match_batch


def _recording_images(assigner: Any, seen: list[Record]) -> Callable:
    """``assign`` of an assigner that appends to ``seen``; our assigners call ``match_batch`` if there is a pair."""
    original = assigner.assign

    @functools.wraps(original)  # ForeignAssigner looks at the arguments
    def assign(*args: Any, **kwargs: Any) -> Any:
        count = len(seen)
        result = original(*args, **kwargs)
        values = [*args, *kwargs.values()]
        sizes = kwargs.get('num_level_priors', next((value for value in values if isinstance(value, list)), None))
        if len(seen) > count:
            seen[-1] = seen[-1]._replace(levels=_levels(seen[-1].batch, sizes))
            return result
        given = [value for value in values if isinstance(value, InstanceData)]
        pred, gts = kwargs.get('pred_instances', given[0]), kwargs.get('gt_instances', given[1])
        plan = torch.zeros(len(pred), len(gts) + 1, device=result.gt_inds.device)
        kept = result.gt_inds >= 0
        plan[kept, (result.gt_inds[kept] - 1) % (len(gts) + 1)] = 1
        batch = make_batch([pred], [gts], [value for value in values if isinstance(value, dict)][:1] or None)
        seen.append(Record('', batch, None, plan, _levels(batch, sizes)))
        return result

    return assign


def _levels(batch: Batch, sizes: Optional[Sequence[int]]) -> Optional[Tensor]:
    """Level of each prediction by the sizes of the levels, or by the strides of points."""
    if batch.priors is None:
        return None
    if sizes is not None and sum(sizes) == batch.num_preds:
        of_levels = torch.tensor(sizes, device=batch.device)
        return torch.arange(len(sizes), device=batch.device).repeat_interleave(of_levels)
    points = batch.priors[0]
    if batch.prior_format == 'anchor' or not (points[:, 2] == points[:, 3]).all():
        return None
    return points[:, 2].unique(return_inverse=True)[1]


def _with_layers(head: nn.Module, seen: list[Record]) -> list[Record]:
    """The records of one image with the names of their layers."""
    proposals = bool(getattr(head, 'as_two_stage', False)) and len(seen) > 1
    names = [*(f'd{layer}' for layer in range(len(seen) - proposals - 1)), 'last', *['enc'] * proposals]
    return [entry._replace(layer=name) for entry, name in zip(seen, names)]


@contextlib.contextmanager
def _training_as_evaluation(model: nn.Module) -> Iterator[None]:
    """Detector and head give their losses, which they do in training only; the modules within are as in evaluation."""
    modes = {module: module.training for module in model.modules()}
    # Not by train(), which modules override: ResNet freezes parameters in it.
    for module in modes:
        module.training = module is model or module is model.bbox_head
    preprocessor: Any = model.data_preprocessor
    augments = getattr(preprocessor, 'batch_augments', None)
    try:
        if augments is not None:
            preprocessor.batch_augments = None
        yield
    finally:
        if augments is not None:
            preprocessor.batch_augments = augments
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _fixed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch, numpy and Python follow from ``seed``; afterwards the generators go on as before."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    on_gpu = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(on_gpu):
        torch.random.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
