"""Sums of focal losses most of whose entries are background, with the gradient in the same pass, as an op.

An entry of logit x that no ground truth claims costs p^gamma softplus(x), p = sigmoid(x), in Focal, Quality Focal and
Varifocal Loss alike. There are N * C of these and only a few others, so the op computes them block by block, small
enough for the cache of a CPU, together with their gradient; autograd would go through memory a dozen times.
"""

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from . import deferred
from .native import Kernel
from .registration import Op

BLOCK = 1 << 18
"""Entries of a block: some copies of it fit into the second-level cache of a CPU."""

KERNEL = Kernel(
    'uotod_focal_rows',
    'logits: f32[N C], N, C, gamma: float, weights: f32[N]~, weights.stride, index: i64[K], entry_losses: f32[K], '
    'entry_slopes: f32[K]?, K, losses: f32[N], gradient: f32[N C]?',
)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digit."""
    return F.softplus(x, threshold=40.0 if x.dtype == torch.float64 else 20.0)


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` of numbers >= 0; the gradient at 0 is 0, also where it is infinite: exponents below 1."""
    if not 0 < exponent < 1:
        return base.pow(exponent)
    return torch.where(base > 0, base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent), 0)


def pays_in_blocks(logits: Tensor) -> bool:
    """Whether :func:`focal_rows` is the faster way: not on a GPU, for which blocks are too small, nor when traced."""
    return deferred.host_may_wait(logits)


def focal_rows(
    logits: Tensor, gamma: float, row_weight: Tensor, index: Tensor, entry_losses: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum over the classes of each row's background losses, but for some entries that have a loss of their own.

    Args:
        logits: (N, C), float32 or float64.
        gamma: Exponent of the modulating factor, >= 0.
        row_weight: Factor of each row's background losses, (N,); one number expanded is cheaper.
        index: The other entries of the flattened logits, each once, ascending, (K,).
        entry_losses: From the logits of these entries, (K,), their losses, (K,).

    Returns:
        (N,). Gradients reach the logits, and ``row_weight`` and what ``entry_losses`` closes over, too.
    """
    row_weight, entries = row_weight.to(logits.dtype), logits.detach().flatten()[index]
    learning = torch.is_grad_enabled()
    if not pays_in_blocks(logits) or (learning and (row_weight.requires_grad or entry_losses(entries).requires_grad)):
        # Weights or qualities that are learnt need their gradient, too.
        losses = (row_weight[:, None] * power(logits.sigmoid(), gamma) * softplus(logits)).flatten()
        own = entry_losses(logits.flatten()[index]).to(losses.dtype)
        return losses.index_put((index,), own).view_as(logits).sum(1)
    slopes = None
    if learning and logits.requires_grad:
        losses = entry_losses(entries.requires_grad_())
        (slopes,) = torch.autograd.grad(losses.sum(), entries)
    else:
        losses = entry_losses(entries)
    losses = losses.detach().to(logits.dtype)  # weights may be of a wider dtype
    return focal_rows_op(logits, float(gamma), row_weight, index, losses, slopes)[0]


@Op
def focal_rows_op(
    logits: Tensor,
    gamma: float,
    row_weight: Tensor,
    index: Tensor,
    entry_losses: Tensor,
    entry_slopes: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    """The losses (N,) and, where ``entry_slopes`` are given, the gradient of their sum by the logits (N, C)."""
    rows, columns = logits.shape
    losses = logits.new_empty(rows)
    gradient = None if entry_slopes is None else torch.empty_like(logits, memory_format=torch.contiguous_format)
    entries = dict(index=index, entry_losses=entry_losses, entry_slopes=entry_slopes)
    run = KERNEL.bind(logits=logits, weights=row_weight, **entries)
    if run is not None:
        run(gamma=gamma, losses=losses, gradient=gradient)
        return losses, losses.new_empty(0) if gradient is None else gradient
    block = max(BLOCK // columns, 1)
    starts = range(0, rows, block)
    ends = torch.arange(len(starts) + 1, device=index.device) * (block * columns)
    bounds = torch.searchsorted(index, ends).tolist()
    for number, start in enumerate(starts):
        part = slice(start, start + block)
        x = logits[part].contiguous()
        prob, loss = x.sigmoid(), softplus(x)
        factor = (prob * prob if gamma == 2 else prob.pow(gamma)).mul_(row_weight[part, None])
        if gradient is not None:  # d/dx p^gamma s = p^gamma (p + gamma s (1 - p))
            slope = torch.sub(1, prob, out=gradient[part]).mul_(loss)
            torch.add(prob, slope, alpha=gamma, out=slope).mul_(factor)
        others = slice(bounds[number], bounds[number + 1])
        loss.mul_(factor).view(-1)[index[others] - start * columns] = entry_losses[others]
        torch.sum(loss, 1, out=losses[part])
    if gradient is not None and entry_slopes is not None:
        gradient.view(-1)[index] = entry_slopes
    return losses, losses.new_empty(0) if gradient is None else gradient


def _outputs_like(
    logits: Tensor,
    gamma: float,
    row_weight: Tensor,
    index: Tensor,
    entry_losses: Tensor,
    entry_slopes: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    shape = (0,) if entry_slopes is None else logits.shape
    return logits.new_empty(logits.shape[0]), logits.new_empty(shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)  # none of (N, C) zeros for the gradient, which nobody differentiates
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Optional[Tensor], _: Any) -> tuple:
    if grad is None:
        return (None,) * 6
    (gradient,) = ctx.saved_tensors
    if not any(grad.stride()) and deferred.host_may_wait(grad):  # of a plain sum: one number for all rows, most often 1
        factor = grad[0].item() if len(grad) else 1.0
        gradient = gradient if factor == 1 else gradient * factor
    else:
        gradient = gradient * grad[:, None]
    return gradient, None, None, None, None, None


focal_rows_op.register_fake(_outputs_like)
focal_rows_op.register_autograd(_backward, _save)
