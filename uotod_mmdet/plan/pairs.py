"""The expansion: from a plan to weighted pairs of predictions and ground truths.

A plan says how much of prediction i goes to ground truth j. mmdet's losses take a weight for each row; so training on
a plan is running them on the rows (i, j) with weight P[i, j], and on all predictions as background with weight
P[i, background]. The cost is that of N + K rows for K pairs, and no tensor is larger than the predictions.
"""

from typing import Any, NamedTuple

from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import list_pairs

MIN_WEIGHT = 1e-5
"""Pairs lighter than this are dropped by default.

Measured on random boxes, 8 x 900 x 50 and 2 x 8732 x 20: this changes the loss by 1e-6 to 5e-4 of itself.
"""


class Pairs(NamedTuple):
    """A plan (B, N, M + 1) as K weighted pairs and B * N background weights, float32 or float64."""

    rows: Tensor  # (K,) prediction of the flattened batch, b * N + i, ascending
    gts: Tensor  # (K,) ground truth of the flattened, padded batch, b * M + j
    images: Tensor  # (K,) b
    weight: Tensor  # (K,) P[b, i, j]
    background: Tensor  # (B * N,) P[b, i, M]
    num_images: int  # B

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Sums of a value of each pair (K,), (B * N,)."""
        return values.new_zeros(len(self.background)).scatter_add(0, self.rows, values)

    @property
    def matched(self) -> Tensor:
        """Mass of each prediction that goes to ground truths, (B * N,)."""
        return self.sum_by_row(self.weight)

    @property
    def row_mass(self) -> Tensor:
        """Total mass of each prediction: 1 in balanced plans, 0 if it is ignored, (B * N,)."""
        return self.background.scatter_add(0, self.rows, self.weight)

    @property
    def mass(self) -> Tensor:
        """Predictions' worth of mass that is matched, of each image, (B,)."""
        matched = self.matched
        return matched.view(self.num_images, len(matched) // max(self.num_images, 1)).sum(1)


def expand(plan: Tensor, min_weight: float = MIN_WEIGHT, few: bool = True) -> Pairs:
    """List the pairs of a plan.

    Args:
        plan: (B, N, M + 1), last column the background.
        min_weight: Pairs lighter than this are left out; 0 keeps all that are not 0.
        few: True: list only pairs with weight. False: pairs of weight 0 may be listed, too, which avoids a
            synchronisation with the GPU.

    Returns:
        Pairs.

    Raises:
        TypeError: If ``plan`` is not a tensor.
        ValueError: If ``plan`` has another shape, or ``min_weight`` is not in [0, 1).
    """
    min_weight = check_min_weight(min_weight)
    if not isinstance(plan, Tensor):
        raise TypeError(f'plan must be a tensor (B, N, M + 1), got {type(plan).__name__}')
    if plan.dim() != 3 or plan.size(2) == 0:
        raise ValueError(f'plan must have shape (B, N, M + 1), last column the background, got {tuple(plan.shape)}')
    return Pairs(*list_pairs(plan, min_weight, few), len(plan))


def check_min_weight(min_weight: Any) -> float:
    """Return ``min_weight`` as a float.

    Raises:
        TypeError: If ``min_weight`` is not a number.
        ValueError: If ``min_weight`` is not in [0, 1).
    """
    min_weight = number('min_weight', min_weight)
    if not 0 <= min_weight < 1:
        raise ValueError(
            f'min_weight must be in [0, 1), got {min_weight}: it is the weight below which a pair of prediction and '
            'ground truth is dropped, and a whole prediction weighs 1.'
        )
    return min_weight
