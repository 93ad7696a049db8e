"""What a match cost reads, and how it is computed for a whole batch, as the cost declares."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

from torch import Tensor

from uotod_mmdet.ops import CostTerm

from .batch import Batch


class CostReading(NamedTuple):
    """How a match cost is computed for a batch.

    A cost of your own declares this by two members of its class: ``needs`` and a method ``batched(self, batch)``.

    Args:
        needs: Fields of a :class:`~uotod_mmdet.costs.Batch` that must be there: 'bboxes', 'scores', 'priors',
            'masks', 'gt_bboxes', 'gt_masks'.
        batched: Function of the cost and the batch. It returns the costs (B, N, M), with any values on padding; or a
            CostTerm, which is computed together with the terms of other costs; or None, for a cost that is called one
            image at a time.
    """

    needs: tuple[str, ...] = ()
    batched: Optional[Callable[[Any, Batch], Union[Tensor, CostTerm, None]]] = None


_READINGS: dict[type, CostReading] = {}


def declare_cost(match_cost: type, reading: CostReading) -> None:
    """Declare how a match cost of another package is computed; subclasses of the cost are not affected."""
    _READINGS[match_cost] = reading


def reading_of_cost(match_cost: Any) -> CostReading:
    """How a match cost is computed: as declared for its class or by its class, or one image at a time."""
    kind = type(match_cost)
    if kind in _READINGS:
        return _READINGS[kind]
    # Declarations of a base are not inherited: a subclass may compute something else.
    return CostReading(kind.needs, kind.batched) if {'needs', 'batched'} <= vars(kind).keys() else CostReading()
