"""What a match cost needs and how a whole batch of it is computed, as the cost states it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

from torch import Tensor

from uotod_mmdet.ops import CostTerm

from .batch import Batch


class CostReading(NamedTuple):
    """How a match cost is computed for a batch.

    A cost of one's own states it by two members of its class: ``needs`` and a method ``batched(self, batch)``.

    Args:
        needs: Fields of a :class:`~uotod_mmdet.costs.Batch` that must be there: 'bboxes', 'scores', 'priors',
            'gt_bboxes'.
        batched: From the cost and the batch the costs (B, N, M), anything on padding; or a CostTerm, which is computed
            together with those of other costs; or None, for a cost that is called one image at a time.
    """

    needs: tuple[str, ...] = ()
    batched: Optional[Callable[[Any, Batch], Union[Tensor, CostTerm, None]]] = None


_READINGS: dict[type, CostReading] = {}


def declare_cost(match_cost: type, reading: CostReading) -> None:
    """State how a match cost of another package is computed; a subclass of the cost is not meant."""
    _READINGS[match_cost] = reading


def reading_of_cost(match_cost: Any) -> CostReading:
    """How a match cost is computed: as declared for its class, as its class states, or one image at a time."""
    kind = type(match_cost)
    if kind in _READINGS:
        return _READINGS[kind]
    # What a base states need not hold for a subclass that computes something else.
    return CostReading(kind.needs, kind.batched) if {'needs', 'batched'} <= vars(kind).keys() else CostReading()
