"""The pairs of a plan."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import deferred
from .deferred import is_traced

ALL = 1 << 20
"""Entries of a plan up to which all pairs are listed on a GPU where that is allowed."""


class ListedPairs(NamedTuple):
    """K pairs of a plan (B, N, M + 1)."""

    rows: Tensor  # (K,) b * N + i, ascending
    gts: Tensor  # (K,) b * M + j
    images: Tensor  # (K,) b
    weight: Tensor  # (K,)
    background: Tensor  # (B * N,) the last column


def list_pairs(plan: Tensor, min_weight: float, few: bool) -> ListedPairs:
    """List the pairs that weigh at least ``min_weight`` and more than 0.

    Args:
        plan: (B, N, M + 1), last column the background.
        min_weight: In [0, 1).
        few: Whether only these may be listed. Otherwise a GPU, which would have to wait for their number, lists all
            pairs of a plan of up to :data:`ALL` entries, as torch.compile does of any plan; the others then weigh 0.
    """
    num_preds, columns = plan.shape[1:]
    if type(plan) is Tensor and plan.is_cpu and plan.dtype is not torch.bfloat16 and deferred.host_may_wait(plan):
        return _list_by_numpy(plan, min_weight)
    kept = plan >= min_weight if min_weight else plan > 0
    kept[:, :, -1] = False
    if is_traced() or (not few and not deferred.host_may_wait(plan) and plan.numel() <= ALL):
        plan = torch.cat([torch.where(kept, plan, 0)[:, :, :-1], plan[:, :, -1:]], dim=2)
        index = torch.arange(kept.numel() // columns * (columns - 1), device=kept.device)
        index = index + index.div(max(columns - 1, 1), rounding_mode='floor')
    else:
        index = kept.flatten().nonzero()[:, 0]
    rows = index.div(columns, rounding_mode='floor')
    images = rows.div(max(num_preds, 1), rounding_mode='floor')
    gts = index - rows * columns + images * (columns - 1)
    return ListedPairs(rows, gts, images, plan.flatten()[index], plan[:, :, -1].contiguous().flatten())


def _list_by_numpy(plan: Tensor, min_weight: float) -> ListedPairs:
    """The same on a CPU, where numpy compares and divides whole numbers several times faster than torch."""
    num_preds, columns = plan.shape[1:]
    weights = plan.detach().resolve_neg().numpy().reshape(-1)
    kept = weights >= min_weight if min_weight else weights > 0
    kept[columns - 1 :: columns] = False
    index = np.flatnonzero(kept)
    rows = index // columns
    images = rows // max(num_preds, 1)
    gts = images - rows  # in place: new memory costs more than the sums
    gts *= columns - 1
    gts += index
    gts -= rows
    places = [torch.from_numpy(array) for array in (rows, gts, images)]
    weight = plan.reshape(-1).index_select(0, torch.from_numpy(index))
    return ListedPairs(places[0], places[1], places[2], weight, plan[:, :, -1].contiguous().flatten())
