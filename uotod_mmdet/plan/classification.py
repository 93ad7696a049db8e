"""Classification losses under a plan; each loss declares how it reads the plan."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from mmdet.models.losses import QualityFocalLoss, VarifocalLoss
from torch import Tensor, nn

from .pairs import Pairs

TARGETS, WEIGHTS = ('labels', 'quality', 'pair quality'), ('row', 'entry')


class Rows(NamedTuple):
    """What a plan gives to a classification loss: B * N predictions, K pairs."""

    scores: Tensor  # (B * N, C)
    labels: Tensor  # (K,) class of each pair's ground truth, a column of the scores
    background_label: int  # a column of the scores or C
    pairs: Pairs
    quality: Callable[[], Tensor]  # gives the quality (IoU) of each pair, (K,)
    num_negatives: Optional[Tensor]  # (B,) predictions of each image that keep their background loss; None: all


class Reading(NamedTuple):
    """How a classification loss reads a plan. A loss of your own declares ``plan_reading = Reading(...)`` in its class.

    Args:
        target: 'labels': the loss gets the labels of the pairs and that of the background, with the weights of the
            plan. 'quality': the loss gets one soft target for each class, (B * N, C), the plan's mean of the qualities
            (IoU) of the pairs of that class, with the masses of the predictions as weights. 'pair quality': the loss
            gets (label, quality) of each pair, and that of the background with quality 0, with the weights of the plan.
        weight: Shape of the weight that the loss takes for N rows: 'row' (N,), or 'entry' (N, 1).
        faster: Function of the loss and :class:`Rows` that gives the losses (B * N,), ``loss_weight`` included, faster
            than calling the loss; it returns None where it does not apply.
    """

    target: str = 'labels'
    weight: str = 'row'
    faster: Optional[Callable[[nn.Module, Rows], Optional[Tensor]]] = None

    @property
    def reads_quality(self) -> bool:
        """Whether the loss gets qualities, for which the predictions need boxes."""
        return self.target != 'labels'


_READINGS: dict[type, Reading] = {}


def declare_reading(loss: type, reading: Reading) -> None:
    """Declare how a loss of another package reads a plan; subclasses of the loss are not affected.

    Raises:
        ValueError: If ``reading`` is not a valid Reading.
    """
    _READINGS[loss] = _checked(loss, reading)


def reading_of(loss: nn.Module) -> Reading:
    """How a loss reads a plan: as its class declares, as declared for its class, or else by labels and rows.

    Subclasses of mmdet's QualityFocalLoss and VarifocalLoss read qualities, too, as in mmdet's heads.
    """
    stated = getattr(loss, 'plan_reading', None)
    if stated is not None:
        return _checked(type(loss), stated)
    if type(loss) in _READINGS:
        return _READINGS[type(loss)]
    if isinstance(loss, VarifocalLoss):
        return Reading(target='quality', weight='entry')
    return Reading(target='quality' if isinstance(loss, QualityFocalLoss) else 'labels')


def _checked(loss: type, reading: Reading) -> Reading:
    if not isinstance(reading, Reading) or reading.target not in TARGETS or reading.weight not in WEIGHTS:
        raise ValueError(
            f'{loss.__name__}: plan_reading must be a Reading with a target of {TARGETS} and a weight of {WEIGHTS}, '
            f'got {reading!r}'
        )
    return reading


def copies_no_rows(loss: nn.Module) -> bool:
    """Whether :func:`classification_losses` copies no scores for each pair; then many pairs cost little."""
    reading = reading_of(loss)
    return reading.target == 'quality' or reading.faster is not None


def classification_losses(
    loss: nn.Module,
    scores: Tensor,
    labels: Tensor,
    background_label: int,
    pairs: Pairs,
    quality: Optional[Callable[[], Tensor]],
    num_negatives: Optional[Tensor] = None,
) -> Tensor:
    """Classification loss of each prediction under a plan.

    Args:
        loss: Any classification loss of mmdet's contract; :class:`Reading` says how it reads the plan.
        scores: (B * N, C).
        labels: Class of each pair's ground truth, a column of ``scores``, (K,).
        background_label: Label of the background, a column of ``scores`` or C.
        pairs: The plan.
        quality: Gives the quality (IoU) of each pair, (K,). None: the loss reads no quality.
        num_negatives: Hard negative mining: number of predictions of each image that keep their background loss, those
            with the largest weighted one, (B,). Not for losses that read qualities. None: all predictions.

    Returns:
        (B * N,), ``loss_weight`` of the loss included.
    """
    reading = reading_of(loss)
    rows = Rows(scores, labels, background_label, pairs, _no_quality if quality is None else quality, num_negatives)
    found = None if reading.faster is None else reading.faster(loss, rows)
    if found is not None:
        return found

    def shaped(weight: Tensor) -> Tensor:
        return weight if reading.weight == 'row' else weight[:, None]

    if reading.target == 'quality':
        mass = pairs.row_mass
        return sum_by_row(loss(scores, mean_quality(rows, mass), shaped(mass), reduction_override='none'))
    background: Any = labels.new_full(scores.shape[:1], background_label)
    target: Any = labels
    if reading.target == 'pair quality':
        background, target = (background, scores.new_zeros(len(scores))), (labels, rows.quality().to(scores.dtype))
    losses = sum_by_row(loss(scores, background, shaped(pairs.background), reduction_override='none'))
    if num_negatives is not None:
        losses = keep_hardest(losses, num_negatives)
    matched = sum_by_row(loss(scores[pairs.rows], target, shaped(pairs.weight), reduction_override='none'))
    return losses.index_add(0, pairs.rows, matched.to(losses.dtype))


def _no_quality() -> Tensor:
    raise ValueError('The loss reads qualities of pairs, which this head does not give.')


def mean_quality(rows: Rows, mass: Tensor) -> Tensor:
    """Soft target of each class: the plan's mean of the qualities of its pairs, (B * N, C)."""
    scores, pairs = rows.scores, rows.pairs
    # Pairs of a prediction that is ignored may be listed, with weight 0.
    mass = torch.where(mass > 0, mass, 1)
    values = (rows.quality() * pairs.weight / mass[pairs.rows]).to(scores.dtype)
    return torch.zeros_like(scores).index_put_((pairs.rows, rows.labels), values, accumulate=True).clamp_(max=1)


def keep_hardest(losses: Tensor, count: Tensor) -> Tensor:
    """The losses (B * N,) with 0 at all but the ``count`` (B,) largest of each image."""
    by_image = losses.detach().view(len(count), len(losses) // max(len(count), 1))
    order = by_image.argsort(1, descending=True)
    first = torch.arange(by_image.size(1), device=losses.device) < count[:, None]
    return losses * torch.zeros_like(first).scatter(1, order, first).flatten()


def sum_by_row(losses: Tensor) -> Tensor:
    """Sum an unreduced loss over all dimensions but the first."""
    return losses.flatten(1).sum(1) if losses.dim() > 1 else losses
