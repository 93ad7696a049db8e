"""Sums of focal losses most of whose entries are background, with the gradient in the same pass.

An entry of logit x that no ground truth claims costs p^gamma softplus(x), p = sigmoid(x), in Focal, Quality Focal and
Varifocal Loss alike. There are N * C of these and only a few others, so they are computed block by block, small enough
for the processor's cache, together with their gradient; autograd would go through memory a dozen times.
"""

from collections.abc import Callable
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from uotod_mmdet.ops.deferred import host_may_wait
from uotod_mmdet.ops.native import Kernel

BLOCK = 1 << 18
"""Entries of a block: some copies of it fit into a processor's second-level cache."""

FOCAL_LOSSES = Kernel(
    'uotod_focal_losses',
    'logits: f32[N C], N, C, gamma: float, weights: f32[N]~, weights.stride, index: i64[K], entry_losses: f32[K], '
    'entry_slopes: f32[K]?, K, losses: f32[N], gradient: f32[N C]?',
)


def in_blocks(x: Tensor) -> bool:
    """Whether :func:`focal_sum` is the way for ``x``: on a processor, not on a GPU, for which blocks are too small."""
    return host_may_wait(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digit."""
    return F.softplus(x, threshold=40.0 if x.dtype == torch.float64 else 20.0)


def focal_sum(
    logits: Tensor,
    gamma: float,
    scale: float,
    row_weight: Tensor,
    index: Tensor,
    entry_losses: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum over the classes of each row's background losses, but for some entries that have a loss of their own.

    Args:
        logits: (N, C), float32 or float64.
        gamma: Exponent of the modulating factor, >= 0.
        scale: Factor of all background losses.
        row_weight: Factor of each row's background losses, (N,).
        index: The other entries of the flattened logits, each once, ascending, (K,).
        entry_losses: From the logits of these entries, (K,), their losses, (K,).

    Returns:
        (N,).
    """
    entries, slope = logits.detach().flatten()[index], None
    if torch.is_grad_enabled() and (row_weight.requires_grad or entry_losses(entries).requires_grad):
        prob = logits.sigmoid()  # weights or qualities are learnt, too: in plain torch
        losses = (scale * row_weight[:, None] * prob.pow(gamma) * softplus(logits)).flatten()
        return losses.index_put((index,), entry_losses(logits.flatten()[index])).view_as(logits).sum(1)
    if logits.requires_grad and torch.is_grad_enabled():
        losses = entry_losses(entries.requires_grad_())
        (slope,) = torch.autograd.grad(losses.sum(), entries)
    else:
        losses = entry_losses(entries)
    losses = losses.detach().to(logits.dtype)  # weights may be of a wider dtype
    return _FocalSum.apply(logits, gamma, scale, row_weight.to(logits.dtype), index, losses, slope)


def nonzero_entries(target: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of the flattened target (N, C), none of them negative, that are above 0, and their values."""
    rows = (target.sum(1) > 0).nonzero()[:, 0]  # a sum is five times faster than a maximum
    values = target[rows]
    row, column = values.nonzero(as_tuple=True)
    return rows[row] * target.size(1) + column, values[row, column]


def row_factor(
    weight: Optional[Union[float, Tensor]],
    reduction: str,
    avg_factor: Optional[Union[float, Tensor]],
    rows: Tensor,
    terms: int,
) -> Tensor:
    """What each row's loss is multiplied with before they are summed, mmdet's ``weight_reduce_loss`` in one number.

    Args:
        weight: (N,), a number, or None.
        reduction: 'none', 'mean' or 'sum'.
        avg_factor: As in mmdet.
        rows: Any tensor with N rows, of the dtype and device wanted.
        terms: What 'mean' divides by without ``avg_factor``.
    """
    factor = rows.new_ones(1) if weight is None else rows.new_ones(1) * weight
    if reduction == 'mean':
        divisor = max(terms, 1) if avg_factor is None else avg_factor + torch.finfo(torch.float32).eps
        factor = factor / divisor
    return factor.expand(len(rows))


class _FocalSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        gamma: float,
        scale: float,
        row_weight: Tensor,
        index: Tensor,
        entry_losses: Tensor,
        entry_slopes: Optional[Tensor],
    ) -> Tensor:
        rows, columns = logits.shape
        losses = logits.new_empty(rows)
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format) if entry_slopes is not None else None
        weights = scale * row_weight if row_weight.stride(0) else (scale * row_weight[:1]).expand(rows)
        slopes = None if entry_slopes is None else entry_slopes.contiguous()
        entries = dict(index=index, entry_losses=entry_losses, entry_slopes=slopes)
        if FOCAL_LOSSES.takes(logits=logits, weights=weights, **entries):
            FOCAL_LOSSES(
                logits=logits, gamma=float(gamma), weights=weights, **entries, losses=losses, gradient=gradient
            )
            ctx.save_for_backward(*([] if gradient is None else [gradient]))
            return losses
        block = max(BLOCK // columns, 1)
        starts = range(0, rows, block)
        ends = torch.arange(len(starts) + 1, device=index.device) * (block * columns)
        bounds = torch.searchsorted(index, ends).tolist()
        for number, start in enumerate(starts):
            part = slice(start, start + block)
            x = logits[part].contiguous()
            weight = weights[part, None]
            prob, loss = x.sigmoid(), softplus(x)
            factor = (prob * prob if gamma == 2 else prob.pow(gamma)).mul_(weight)
            if gradient is not None:  # d/dx p^gamma s = p^gamma (p + gamma s (1 - p))
                slope = torch.sub(1, prob, out=gradient[part]).mul_(loss)
                torch.add(prob, slope, alpha=gamma, out=slope).mul_(factor)
            others = slice(bounds[number], bounds[number + 1])
            loss.mul_(factor).view(-1)[index[others] - start * columns] = entry_losses[others]
            torch.sum(loss, 1, out=losses[part])
        if gradient is not None:
            gradient.view(-1)[index] = entry_slopes
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        if not any(grad.stride()):  # of a plain sum: one number for all rows, most often 1
            factor = grad[0].item() if len(grad) else 1.0
            gradient = gradient if factor == 1 else gradient * factor
        else:
            gradient = gradient * grad[:, None]
        return gradient, None, None, None, None, None, None
