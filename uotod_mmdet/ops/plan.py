"""The pairs of a plan."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from . import deferred
from .deferred import is_traced
from .native import Kernel

KERNEL = Kernel(
    'uotod_plan_pairs',
    'plan: f32[B N C], B, N, C, min_weight: float, counts: i64[T], T, rows: i64[K]?, gts: i64[K]?, images: i64[K]?, '
    'weights: f32[K]?, K, background: f32[R]?, R',
)

ALL = 1 << 16
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
    listed = _list_by_kernel(plan, min_weight)
    if listed is not None:
        return listed
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


def _list_by_kernel(plan: Tensor, min_weight: float) -> Optional[ListedPairs]:
    """The same by the compiled part, which counts the pairs first; None where the kernel does not take the plan."""
    if is_traced() or (torch.is_grad_enabled() and plan.requires_grad):
        return None
    counts = torch.zeros(torch.get_num_threads(), dtype=torch.long)
    run = KERNEL.bind(plan=plan, counts=counts)
    if run is None:
        return None
    run(min_weight=min_weight, rows=None, gts=None, images=None, weights=None, background=None)
    rows, gts, images = torch.empty(3, int(counts.sum()), dtype=torch.long)
    weights, background = plan.new_empty(len(rows)), plan.new_empty(plan.shape[0] * plan.shape[1])
    run(min_weight=min_weight, rows=rows, gts=gts, images=images, weights=weights, background=background)
    return ListedPairs(rows, gts, images, weights, background)
