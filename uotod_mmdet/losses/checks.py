"""Input checks of the losses, and their common last step: weight, reduce, check the values once.

Shapes are checked first; they cost nothing. Value conditions are kept as 0-dim tensors on the input's device and read
together at the end, on a GPU without waiting for it (see ops/deferred.py). Details are computed after a failure only.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Optional, Union

import torch
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor

from uotod_mmdet.ops import act_if

REDUCTIONS = ('none', 'mean', 'sum')

Fault = tuple[Tensor, Callable[[], str]]
"""A 0-dim bool tensor, and a function that gives the message of the error if the tensor is true."""


def check_reduction(owner: str, reduction: str, avg_factor: Optional[Union[float, Tensor]]) -> None:
    """Check the way to reduce.

    Raises:
        TypeError: If ``avg_factor`` is neither a number nor a tensor of one.
        ValueError: If ``reduction`` is unknown, or is 'sum' beside an ``avg_factor``.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'{owner}: reduction must be one of none, mean, sum; got {reduction!r}.')
    if reduction == 'sum' and avg_factor is not None:
        raise ValueError(
            f"{owner}: avg_factor cannot be used with reduction='sum'. mmdet's heads always pass avg_factor, so "
            "reduction='sum' cannot be used inside them; set reduction='mean' in the config, which divides the sum by "
            'avg_factor (mmdet issue 10919).'
        )
    if isinstance(avg_factor, Tensor):
        if avg_factor.shape not in ((), (1,)) or avg_factor.is_complex():
            raise ValueError(
                f'{owner}: avg_factor must be one real number; got a tensor of shape {tuple(avg_factor.shape)}, '
                f'{avg_factor.dtype}.'
            )
    elif avg_factor is not None and not isinstance(avg_factor, numbers.Real):
        raise TypeError(
            f'{owner}: avg_factor must be a number or a tensor of one; got {avg_factor!r} of type '
            f'{type(avg_factor).__name__}.'
        )


def check_pred(owner: str, pred: Tensor, layout: str, dims: Optional[int] = None) -> None:
    """Check that ``pred`` is a floating tensor with ``dims`` dimensions (None: any) and at least one column.

    Raises:
        TypeError: If ``pred`` is not a floating tensor.
        ValueError: If the shape is not ``layout``.
    """
    if not isinstance(pred, Tensor) or not pred.is_floating_point():
        came = pred.dtype if isinstance(pred, Tensor) else type(pred).__name__
        raise TypeError(f'{owner}: pred must be a floating-point tensor of shape {layout}; got {came}.')
    if dims is not None and pred.dim() != dims:
        raise ValueError(
            f'{owner}: pred must have shape {layout}; got {tuple(pred.shape)}. '
            'Flatten images and positions into the first dimension.'
        )
    if pred.dim() == 0 or pred.shape[-1] == 0:
        raise ValueError(f'{owner}: pred must have shape {layout}, no column is missing; got {tuple(pred.shape)}.')


def check_tensor(owner: str, name: str, value: Tensor, shape: tuple[int, ...], hint: str) -> None:
    """Check that ``value`` is a tensor of ``shape``.

    Raises:
        TypeError: If ``value`` is not a tensor.
        ValueError: If the shape differs.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f'{owner}: {name} must be a tensor; got {type(value).__name__}. {hint}')
    if value.shape != shape:
        raise ValueError(f'{owner}: {name} must have shape {tuple(shape)}; got {tuple(value.shape)}. {hint}')


def check_weight(owner: str, weight: Optional[Union[float, Tensor]], shape: tuple[int, ...]) -> None:
    """Check that ``weight`` can multiply a loss of ``shape`` without making it larger.

    Raises:
        TypeError: If ``weight`` is neither a tensor nor a number.
        ValueError: If ``weight`` does not broadcast to ``shape``.
    """
    if weight is None or isinstance(weight, (int, float)):
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f'{owner}: weight must be a tensor; got {type(weight).__name__}.')
    try:
        fits = torch.broadcast_shapes(weight.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        one_per = 'row' if len(shape) == 1 else 'entry'
        raise ValueError(
            f'{owner}: weight must have shape {tuple(shape)}, one per {one_per} of the loss, or broadcast to it; '
            f'got {tuple(weight.shape)}.'
        )


def box_limit(dtype: torch.dtype) -> float:
    """Largest coordinate of a box in ``dtype``: 1.07e9 in float32.

    Gradients of IoU losses divide by squares of areas. Boxes within the limit have a hull of up to two times the limit
    a side, whose diagonal's fourth power still is a number of the dtype.
    """
    return torch.finfo(dtype).max ** 0.25 / 4


def beyond_limit(*boxes: Tensor) -> Tensor:
    """Whether a coordinate is NaN or beyond :func:`box_limit` of the narrowest dtype, as a 0-dim bool tensor."""
    ends = [end for values in boxes if values.numel() for end in _ends(values)]
    if not ends:
        return torch.zeros((), dtype=torch.bool, device=boxes[0].device)
    return ~(torch.stack(ends).abs() <= min(box_limit(values.dtype) for values in boxes)).all()


def check_boxes(owner: str, **boxes: Tensor) -> None:
    """Check that no coordinate is NaN, infinite, or so large that losses or their gradients overflow.

    Args:
        owner: Whose boxes they are, for the message.
        **boxes: Boxes in the units in which losses compare them, (..., 4), by the name of the argument they come from.

    Raises:
        ValueError: If a coordinate is, on a GPU during a later call (see ops/deferred.py).
    """

    def complain() -> None:
        for name, values in boxes.items():
            if beyond_limit(values):
                raise ValueError(f'{owner}: {name} {explain_boxes(values)}')

    act_if(beyond_limit(*boxes.values()), complain)


def explain_boxes(boxes: Tensor) -> str:
    """Say what is wrong with boxes that are :func:`beyond_limit`."""
    bad = int((~boxes.isfinite()).sum())
    if bad:
        what = f'holds {bad} NaN or infinite of {boxes.numel()} entries'
    else:
        what = (
            f'lies in {span(boxes)}: beyond {box_limit(boxes.dtype):.3g} IoU losses and their gradients overflow in '
            f'{boxes.dtype}'
        )
    return (
        f'{what}. Usual causes: training has diverged (lower the learning rate, or clip gradients with '
        'optim_wrapper=dict(clip_grad=dict(max_norm=...))), fp16 overflow, or, in ground truths, a wrong annotation.'
    )


def check_finite(owner: str, terms: Mapping[str, Tensor], inputs: Mapping[str, Optional[Union[float, Tensor]]]) -> None:
    """Check that all terms of a loss are finite.

    Args:
        owner: Whose terms they are, for the message.
        terms: The terms, reduced or few, by name.
        inputs: What the terms were computed from, by the name of the argument, the likeliest cause first; read only
            if a term is not finite.

    Raises:
        ValueError: If a term is not finite, on a GPU during a later call (see ops/deferred.py). The message names the
            first input that holds NaN or infinite entries, else the term.
    """
    if not terms:
        return

    def complain() -> None:
        bad = [name for name, term in terms.items() if not term.isfinite().all()]
        if not bad:  # only their sum overflows
            return
        given = (f'{name} in {span(value)}' for name, value in inputs.items() if isinstance(value, Tensor))
        cause = f'{bad[0]} overflows {terms[bad[0]].dtype}, or is not finite by itself, with {", ".join(given)}'
        for name, value in inputs.items():
            value = torch.as_tensor(0.0 if value is None else value)
            count = int((~value.isfinite()).sum())
            if count:
                cause = f'{name} holds {count} NaN or infinite of {value.numel()} entries'
                break
        raise ValueError(
            f'{owner}: {" and ".join(bad)} not finite: {cause}. Usual causes: training has diverged (lower the '
            'learning rate, or clip gradients with optim_wrapper=dict(clip_grad=dict(max_norm=...))), or fp16 overflow.'
        )

    total = torch.cat([term.detach().flatten() for term in terms.values()]).sum()
    act_if((total - total) != 0, complain)  # NaN where the total is not finite; isfinite() takes four operations


def _ends(values: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry."""
    values = values.detach()
    # On a CPU torch 2.1 has no aminmax of half precision.
    smallest, largest = (values if values.is_cuda else full_precision(values)).aminmax()
    return smallest, largest


def outside(values: Tensor, low: float, high: float, roundings: int = 4) -> Tensor:
    """Whether any entry is NaN or outside [low, high] by more than some roundings, as a 0-dim bool tensor."""
    if values.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=values.device)
    slack = roundings * torch.finfo(values.dtype).eps * max(1, high) if values.is_floating_point() else 0
    smallest, largest = _ends(values)
    return ~((smallest >= low - slack) & (largest <= high + slack))


def span(values: Tensor) -> str:
    """Say where the values lie, for a message."""
    values = values.detach()
    real = values[~values.isnan()]
    missing = values.numel() - real.numel()
    words = f'{real.min().item():.6g} to {real.max().item():.6g}' if real.numel() else 'no number'
    return f'{words} and {missing} NaN of {values.numel()} entries' if missing else words


def full_precision(tensor: Tensor) -> Tensor:
    """Cast half-precision to float32, leave the rest."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def reduce_and_check(
    owner: str,
    loss: Tensor,
    pred: Tensor,
    weight: Optional[Union[float, Tensor]],
    reduction: str,
    avg_factor: Optional[Union[float, Tensor]],
    faults: list[Fault],
) -> Tensor:
    """Weight and reduce ``loss`` as mmdet does, then read ``faults`` and whether the result is finite, in one go.

    One thing differs from mmdet: the mean of no entries is 0, still attached to the graph, where mmdet gives NaN.

    Raises:
        ValueError: If ``pred`` holds NaN, a fault is true, or the result is not finite, in this order.
    """
    if loss.numel() == 0 and avg_factor is None and reduction == 'mean':
        reduction = 'sum'
    return checked(owner, weight_reduce_loss(loss, weight, reduction, avg_factor), pred, weight, avg_factor, faults)


def checked(
    owner: str,
    loss: Tensor,
    pred: Tensor,
    weight: Optional[Union[float, Tensor]],
    avg_factor: Optional[Union[float, Tensor]],
    faults: list[Fault],
) -> Tensor:
    """Return ``loss``, which is weighted and reduced, after one check of ``faults`` and of whether ``loss`` is finite.

    Raises:
        ValueError: As :func:`reduce_and_check`.
    """
    finite = loss.detach().isfinite().all()
    bad = torch.stack([~finite, *(flag for flag, _ in faults)]).any()
    act_if(bad, lambda: _raise(owner, pred, weight, avg_factor, faults))
    return loss


def _raise(
    owner: str,
    pred: Tensor,
    weight: Optional[Union[float, Tensor]],
    avg_factor: Optional[Union[float, Tensor]],
    faults: list[Fault],
) -> None:
    missing = int(pred.isnan().sum())
    if missing:
        raise ValueError(
            f'{owner}: pred holds NaN in {missing} of {pred.numel()} entries. Usual causes: training has diverged '
            '(lower the learning rate, or clip gradients with optim_wrapper=dict(clip_grad=dict(max_norm=...))), or '
            'fp16 has overflowed in the network (train in bf16 or float32).'
        )
    for flag, explain in faults:
        if flag:
            raise ValueError(f'{owner}: {explain()}')
    infinite = int(pred.isinf().sum())
    if infinite:
        cause = f'pred holds {infinite} infinite of {pred.numel()} entries where the loss needs their value'
    elif weight is not None and not torch.as_tensor(weight).isfinite().all():
        cause = 'weight holds NaN or infinite entries'
    elif avg_factor is not None and not torch.as_tensor(avg_factor).isfinite().all():
        cause = f'avg_factor is {float(avg_factor)}'
    else:
        cause = f'the values are too large for {pred.dtype}: pred lies in {span(pred)}'
    raise ValueError(
        f'{owner}: the loss is not finite though pred holds no NaN: {cause}. If it grew during training, lower the '
        'learning rate or clip gradients with optim_wrapper=dict(clip_grad=dict(max_norm=...)).'
    )
