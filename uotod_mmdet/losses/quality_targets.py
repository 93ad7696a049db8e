"""Targets of the losses that learn the quality of a box: (label, score) of each row, or one soft target per entry."""

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

from .checks import Fault, check_tensor, outside, span
from .rows import nonzero_entries

FORMS = 'target is a pair (label, score) of shapes (N,), (N,), or a tensor of soft targets, shaped like pred.'


def read_target(
    owner: str, pred: Tensor, target: Union[Tensor, Sequence[Tensor]], faults: list[Fault]
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Soft targets (N, C), or label and score of each row, (N,), (N,), the score 0 on the background.

    Args:
        owner: The loss, for messages.
        pred: (N, C).
        target: Either form.
        faults: Gets what is wrong with the values of the target.

    Raises:
        TypeError: If ``target`` or a part of it is not a tensor.
        ValueError: If a shape does not fit, as that of labels alone.
    """
    if not isinstance(target, Tensor):
        return _label_and_score(owner, pred, target, faults)
    alone = '' if target.is_floating_point() else f' Labels alone ({target.dtype}) hold no qualities.'
    check_tensor(owner, 'target', target, pred.shape, FORMS + alone)
    faults.append((outside(target, 0, 1), lambda: f'target must lie in [0, 1]; it lies in {span(target)}.'))
    return target


def probabilities_fault(pred: Tensor) -> Fault:
    """Whether a prediction lies outside [0, 1], and the message of that."""
    illegal = outside(pred, 0, 1, roundings=0)
    return illegal, lambda: f'activated=True takes probabilities in [0, 1]; pred lies in {span(pred)}.'


def _label_and_score(owner: str, pred: Tensor, target: Sequence[Tensor], faults: list[Fault]) -> tuple[Tensor, Tensor]:
    """Label and score of each row, 0 on the background; what is wrong with their values goes to ``faults``."""
    if not isinstance(target, (tuple, list)):
        raise TypeError(f'{owner}: {FORMS} Got {type(target).__name__}.')
    if len(target) != 2:
        raise ValueError(f'{owner}: {FORMS} Got a {type(target).__name__} of {len(target)}.')
    rows, classes = pred.shape
    label, score = target
    check_tensor(owner, 'label', label, (rows,), FORMS)
    check_tensor(owner, 'score', score, (rows,), FORMS)
    faults += _label_faults(owner, label, classes)

    foreground = label < classes
    score = torch.where(foreground, score, 0)
    faults.append(
        (
            outside(score, 0, 1),
            lambda: f'score must lie in [0, 1] on foreground rows; there it lies in {span(score[foreground])}.',
        )
    )
    return label, score


def quality_entries(wanted: Union[Tensor, tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, Tensor]:
    """Entries of the flattened (N, C) that have a quality, ascending, and these qualities.

    Args:
        wanted: What :func:`read_target` returns.
        classes: C.
    """
    if isinstance(wanted, Tensor):
        return nonzero_entries(wanted)
    label, score = wanted
    rows = (label < classes).nonzero()[:, 0]
    return rows * classes + label[rows].long().clamp(0, classes - 1), score[rows]


def spread(pred: Tensor, label: Tensor, score: Tensor) -> Tensor:
    """Spread labels and scores over (N, C)."""
    # A background row writes its 0 to class C - 1, so that no rows have to be looked up.
    column = label.long().clamp(0, pred.size(1) - 1)[:, None]
    return pred.new_zeros(pred.shape).scatter_(1, column, score.to(pred.dtype)[:, None])


def _label_faults(owner: str, label: Tensor, classes: int) -> list[Fault]:
    if label.dtype == torch.bool or label.is_complex():
        raise TypeError(f'{owner}: label must hold whole numbers in [0, {classes}]; got dtype {label.dtype}.')
    faults = [
        (
            outside(label, 0, classes),
            lambda: (
                f'label must lie in [0, {classes}] ({classes} for background), as pred has {classes} classes; '
                f'it lies in {span(label)}. Check num_classes of the head against the classes of the data set.'
            ),
        )
    ]
    if label.is_floating_point():
        faults.append(
            (
                (label != label.floor()).any(),
                lambda: (
                    f'label must hold whole numbers; got fractions of dtype {label.dtype}. '
                    'target is (label, score), in this order.'
                ),
            )
        )
    return faults
