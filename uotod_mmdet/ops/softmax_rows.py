"""Softmax cross-entropy of rows that have several weighted labels each, as an op.

Row i costs sum_k w_k (log sum_c exp(x_ic) - x_i,label_k) over its labels k: a common one (the background, say), and
those of its pairs. The logarithms of a row are computed once, however many labels the row has.
"""

from typing import Any

import torch
from torch import Tensor

from .deferred import is_transformed
from .native import Kernel
from .registration import Op

KERNEL = Kernel(
    'uotod_softmax_rows',
    'scores: f32[N C], N, C, label: int, label_weight: f32[N], rows: i64[K], labels: i64[K], weights: f32[K], K, '
    'losses: f32[N]?, log_sums: f32[N 2], grad: f32[N]?~, grad.stride, gradient: f32[N C]?',
)


def softmax_rows(
    scores: Tensor, label: int, label_weight: Tensor, rows: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """Weighted cross-entropy of each row.

    Args:
        scores: Logits (N, C), float32 or float64.
        label: A column that is a label of all rows.
        label_weight: The weight of that label, (N,).
        rows: Row of each pair, ascending, (K,).
        labels: Column of each pair, (K,).
        weights: Weight of each pair, (K,).

    Returns:
        (N,).
    """
    label_weight, weights = label_weight.to(scores.dtype), weights.to(scores.dtype)
    learnt = torch.is_grad_enabled() and (label_weight.requires_grad or weights.requires_grad)
    if learnt or is_transformed():
        return _reference(scores, label, label_weight, rows, labels, weights)[0]
    return softmax_rows_op(scores, label, label_weight, rows, labels, weights)[0]


@Op
def softmax_rows_op(
    scores: Tensor, label: int, label_weight: Tensor, rows: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (N,), and the logarithms of the sums of exponentials in two summands, largest first, (N, 2)."""
    given = dict(scores=scores, label_weight=label_weight, rows=rows, labels=labels, weights=weights)
    run = KERNEL.bind(**given)
    if run is not None:
        losses, log_sums = torch.empty_like(label_weight), scores.new_empty(len(scores), 2)
        run(label=label, losses=losses, log_sums=log_sums, grad=None, gradient=None)
        return losses, log_sums
    return _reference(scores, label, label_weight, rows, labels, weights)


def _reference(
    scores: Tensor, label: int, label_weight: Tensor, rows: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    largest = scores.detach().amax(1)
    rest = (scores - largest[:, None]).exp().sum(1).log()
    own = (largest[rows] - scores[rows, labels]) + rest[rows]
    common = (largest - scores[:, label]) + rest
    # A weight of 0 leaves a logit of -inf out.
    losses = torch.where(label_weight == 0, 0, label_weight * common)
    return losses.index_add(0, rows, torch.where(weights == 0, 0, weights * own)), torch.stack([largest, rest], 1)


@Op
def softmax_rows_gradient_op(
    scores: Tensor,
    label: int,
    label_weight: Tensor,
    rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    log_sums: Tensor,
    grad: Tensor,
) -> Tensor:
    """Gradient of the sum of losses times ``grad`` (N,) by the scores, (N, C)."""
    given = dict(scores=scores, label_weight=label_weight, rows=rows, labels=labels, weights=weights)
    given.update(log_sums=log_sums, grad=grad)
    run = KERNEL.bind(**given)
    if run is not None:
        gradient = torch.empty_like(scores)
        run(label=label, losses=None, gradient=gradient)
        return gradient
    mass = label_weight.index_add(0, rows, weights)
    gradient = (scores - log_sums[:, :1]).sub_(log_sums[:, 1:]).exp_().mul_((grad * mass)[:, None])
    gradient[:, label] -= grad * label_weight
    return gradient.index_put_((rows, labels), -grad[rows] * weights, accumulate=True)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    scores, ctx.label, *others = inputs
    ctx.save_for_backward(scores, *others, output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    scores, *others = ctx.saved_tensors
    return softmax_rows_gradient_op(scores, ctx.label, *others, grad.resolve_neg()), None, None, None, None, None


softmax_rows_op.register_fake(
    lambda scores, *_: (scores.new_empty(scores.shape[0]), scores.new_empty(scores.shape[0], 2))
)
softmax_rows_gradient_op.register_fake(lambda scores, *_: torch.empty_like(scores))
softmax_rows_op.register_autograd(_backward, _save)
