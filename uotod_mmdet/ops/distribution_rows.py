"""Cross-entropy of rows with the two bins beside a distance, Distribution Focal Loss of each row."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native import Kernel

KERNEL = Kernel(
    'uotod_distribution_rows',
    'logits: f32[N C], target: f32[N], N, C, losses: f32[N]?, log_sums: f32[N 2], grad: f32[N]?~, grad.stride, '
    'gradient: f32[N C]?',
)


def distribution_rows(logits: Tensor, target: Tensor) -> Tensor:
    """-((i + 1 - y) log S_i + (y - i) log S_{i+1}) of each row, i = floor(y), S = softmax(logits).

    Args:
        logits: (N, C), float32 or float64.
        target: Distances y in [0, C - 1], (N,); at C - 1 the last bin has all the weight.

    Returns:
        (N,).
    """
    target = target.to(logits.dtype).contiguous().resolve_neg()
    if KERNEL.bind(logits=logits, target=target) and not target.requires_grad:
        return _CompiledRows.apply(logits, target)
    left = target.detach().nan_to_num(0).clamp(0, logits.size(1) - 1).long()
    bins = torch.stack([left, (left + 1).clamp(max=logits.size(1) - 1)], 1)
    share = target - left
    return -(logits.log_softmax(1).gather(1, bins) * torch.stack([1 - share, share], 1)).sum(1)


class _CompiledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        losses, log_sums = torch.empty_like(target), logits.new_empty(len(logits), 2)
        KERNEL(logits=logits, target=target, losses=losses, log_sums=log_sums, grad=None, gradient=None)
        ctx.save_for_backward(logits, target, log_sums)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        logits, target, log_sums = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        given = dict(logits=logits, target=target, log_sums=log_sums, grad=grad.resolve_neg())
        KERNEL(**given, losses=None, gradient=gradient)
        return gradient, None
