"""Registration of ops with torch.library: torch.compile, torch.export and FakeTensor see an op as one call."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = 'uotod_mmdet'
HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')
"""Since torch 2.4; before that an op is its Python function, in an autograd.Function where the op has a backward."""


def op(function: Callable) -> Callable:
    """Register a function of tensors and numbers as the op ``uotod_mmdet::<its name>``.

    The function chooses between the compiled kernel and the torch reference by itself. Its annotations are the schema;
    it changes no input, and no output shares memory with an input or with another output.
    """
    return (
        torch.library.custom_op(f'{NAMESPACE}::{function.__name__}', function, mutates_args=())
        if HAS_CUSTOM_OPS
        else _Plain(function)
    )


def register_fake(registered: Any, function: Callable) -> None:
    """Say what an op's outputs look like for inputs without values."""
    if HAS_CUSTOM_OPS:
        registered.register_fake(function)


def register_autograd(registered: Any, backward: Callable, setup_context: Callable) -> None:
    """Give an op its backward: ``setup_context(ctx, inputs, output)``, ``backward(ctx, *grads)``."""
    if HAS_CUSTOM_OPS:
        registered.register_autograd(backward, setup_context=setup_context)
    else:
        registered.function = type(
            registered.forward.__name__,
            (torch.autograd.Function,),
            dict(
                forward=staticmethod(registered.forward),
                setup_context=staticmethod(setup_context),
                backward=staticmethod(backward),
            ),
        )


class _Plain:
    """An op before torch 2.4."""

    def __init__(self, forward: Callable) -> None:
        self.forward, self.function = forward, None

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args) if self.function is None else self.function.apply(*args)
