"""Registration of ops with torch.library: torch.compile, torch.export and FakeTensor see an op as one call."""

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from .deferred import is_traced

NAMESPACE = 'uotod_mmdet'
HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')
"""Since torch 2.4."""

_active_modes = getattr(torch._C, '_len_torch_dispatch_stack', lambda: 0)


class Op:
    """A function of tensors and numbers, registered as the op ``uotod_mmdet::<its name>``.

    The function chooses between the compiled kernel and the torch reference by itself. Its annotations are the schema;
    it changes no input, and no output shares memory with an input or with another output.

    Calls on plain tensors that nothing traces go to the function, or to an autograd.Function of it, and spare the tens
    of microseconds of the registered op.
    """

    def __init__(self, forward: Callable) -> None:
        self.forward = forward
        self.registered: Any = None
        self.function: Optional[type[torch.autograd.Function]] = None
        if HAS_CUSTOM_OPS:
            self.registered = torch.library.custom_op(f'{NAMESPACE}::{forward.__name__}', forward, mutates_args=())

    def __call__(self, *args: Any) -> Any:
        if self.registered is not None and _is_watched(args):
            return self.registered(*args)
        if self.function is None or not torch.is_grad_enabled():
            return self.forward(*args)
        return self.function.apply(*args)

    def register_fake(self, function: Callable) -> None:
        """Say what the outputs look like for inputs without values."""
        if HAS_CUSTOM_OPS:
            self.registered.register_fake(function)

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """Give the op its backward: ``setup_context(ctx, inputs, output)``, ``backward(ctx, *grads)``."""
        if HAS_CUSTOM_OPS:
            self.registered.register_autograd(backward, setup_context=setup_context)

        def forward(ctx: Any, *args: Any) -> Any:
            output = self.forward(*args)
            setup_context(ctx, args, output)
            return output

        methods = dict(forward=staticmethod(forward), backward=staticmethod(once_differentiable(backward)))
        self.function = type(self.forward.__name__, (torch.autograd.Function,), methods)


def _is_watched(args: tuple) -> bool:
    """Whether something follows the call that does not see the values that a compiled kernel writes."""
    if is_traced() or _active_modes() or torch.jit.is_tracing():
        return True
    return any(isinstance(arg, Tensor) and type(arg) is not Tensor and type(arg) is not Parameter for arg in args)
