"""Deferred checks: raise later instead of synchronising with the GPU."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def host_may_wait(tensor: Tensor) -> bool:
    """Whether the host may read values of the tensor.

    On a GPU it would wait for all work that is queued there; while code is traced there are no values.
    """
    return not tensor.is_cuda and not is_traced()


def is_traced() -> bool:
    """Whether torch.compile or torch.export traces the code or a transform of torch.func runs it."""
    return _is_compiling() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp...) runs the code: it takes torch's own operations only."""
    return _transforms_active()


_is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling  # torch 2.1 lacks the first
_transforms_active = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)


def to_device_of(tensor: Tensor, values: Sequence) -> Tensor:
    """The values as a tensor of the dtype and on the device of ``tensor``."""
    return torch.tensor(values, dtype=tensor.dtype).to(tensor.device, non_blocking=True)


def act_if(flag: Tensor, act: Callable[[], None]) -> None:
    """Call ``act``, which raises or logs, if ``flag`` (a bool, ()) is true.

    On a GPU ``act`` is called during a later call of this function, usually in the next iteration, as soon as the flag
    has arrived on the host. While torch.compile traces and inside the transforms of torch.func values cannot be read:
    nothing is checked there.
    """
    if is_traced():
        return
    if host_may_wait(flag):
        if flag:
            act()
        return
    while _sent and _sent[0][1].query():
        arrived, _, earlier_act = _sent.popleft()
        if arrived:
            earlier_act()
    _sent.append((*_send(flag), act))


_sent: deque = deque()


def _send(flag: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A host tensor that will hold the flag, and the event of its arrival."""
    place = torch.empty((), dtype=torch.bool, pin_memory=True)
    place.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(flag.device))
    return place, event
