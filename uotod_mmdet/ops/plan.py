"""The pairs of a plan, and sums over them."""

from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from . import deferred
from .deferred import is_traced
from .native import Call, Kernel

ALL = 1 << 20
"""Entries of a plan up to which all pairs are listed on a GPU where that is allowed."""

EXPAND_KERNEL = Kernel(
    'uotod_expand',
    'plan: f32[B N K], B, N, K, min_weight: float, counts: i64[T], fill: int, rows: i64[P]?, gts: i64[P]?, '
    'images: i64[P]?, weights: f32[P]?, background: f32[R]?',
)
STATISTICS_KERNEL = Kernel(
    'uotod_plan_statistics',
    'rows: i64[K], gts: i64[K], weights: f32[K], K, background: f32[R], R, gt_mask: bool[G], G, values: f64[4]',
)

SUM_KERNEL = Kernel('uotod_sum_groups', 'values: f32[K], groups: i64[K], K, sums: f32[G], G')


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
    run = None if plan.requires_grad else EXPAND_KERNEL.bind(plan=plan)
    if run is not None:
        return _list_compiled(run, plan, min_weight)
    num_preds, columns = plan.shape[1:]
    kept = plan >= min_weight if min_weight else plan > 0
    kept[:, :, -1] = False
    if is_traced() or (not few and not deferred.host_may_wait(plan) and plan.numel() <= ALL):
        plan = torch.cat([torch.where(kept, plan, 0)[:, :, :-1], plan[:, :, -1:]], dim=2)
        index = torch.arange(kept.numel() // columns * (columns - 1), device=kept.device)
        index = index + index.div(max(columns - 1, 1), rounding_mode='floor')
    elif kept.is_cuda or type(kept) is not Tensor:
        index = kept.flatten().nonzero()[:, 0]
    else:
        index = torch.from_numpy(np.flatnonzero(kept.numpy()))  # four times faster than torch
    rows = index.div(columns, rounding_mode='floor')
    images = rows.div(max(num_preds, 1), rounding_mode='floor')
    gts = index - rows * columns + images * (columns - 1)
    return ListedPairs(rows, gts, images, plan.flatten()[index], plan[:, :, -1].flatten())


def _list_compiled(run: Call, plan: Tensor, min_weight: float) -> ListedPairs:
    counts = torch.empty(torch.get_num_threads(), dtype=torch.long)
    given = dict(min_weight=float(min_weight), counts=counts)
    names = 'rows', 'gts', 'images', 'weights', 'background'
    run(**given, fill=0, **dict.fromkeys(names))
    count = int(counts.sum())
    rows, gts, images = (torch.empty(count, dtype=torch.long) for _ in range(3))
    filled = rows, gts, images, plan.new_empty(count), plan.new_empty(plan[:, :, 0].numel())
    run(**given, fill=1, **dict(zip(names, filled)))
    return ListedPairs(*filled)


def sums_of_plan(pairs: ListedPairs, gt_mask: Tensor) -> Optional[Tensor]:
    """Matched mass, real ground truths that hold less than 1/2, the sum of the entropies (nats) of the rows that give
    more to ground truths than to the background, and the number of these rows, float64, (4,); None where no kernel is.

    Args:
        pairs: The pairs.
        gt_mask: False on padding, (B, M).
    """
    given = dict(rows=pairs.rows, gts=pairs.gts, weights=pairs.weight, background=pairs.background)
    given['gt_mask'] = gt_mask.flatten()
    run = STATISTICS_KERNEL.bind(**given)
    if run is None:
        return None
    values = torch.empty(4, dtype=torch.float64)
    run(values=values)
    return values


def sum_groups(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums of values (K,) over each of ``count`` groups, to which they belong in ascending order, (count,)."""
    return _SumGroups.apply(values, groups, count)


class _SumGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(groups)
        run = SUM_KERNEL.bind(values=values, groups=groups)
        if run is not None:
            sums = values.new_empty(count)
            run(sums=sums)
            return sums
        return values.new_zeros(count).index_add(0, groups, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (groups,) = ctx.saved_tensors
        return grad.index_select(0, groups), None, None
