"""Registration of ops with torch.library, which torch.compile, torch.export and FakeTensor see as one call."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = 'uotod_mmdet'
HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')
"""Since torch 2.4; before that an op is its Python function."""


def op(function: Callable) -> Callable:
    """Register a function of tensors and numbers as the op ``uotod_mmdet::<its name>``.

    The function chooses between the compiled kernel and the torch reference by itself. Its annotations are the schema;
    it changes no input, and no output shares memory with an input or with another output.
    """
    if not HAS_CUSTOM_OPS:
        return function
    return torch.library.custom_op(f'{NAMESPACE}::{function.__name__}', function, mutates_args=())


def register_fake(registered: Any, function: Callable) -> None:
    """Say what an op's outputs look like for inputs without values."""
    if HAS_CUSTOM_OPS:
        registered.register_fake(function)
