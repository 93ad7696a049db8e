"""The compiled part (csrc/): kernels for float32 on a CPU, several times faster than the torch code beside them.

The compiled part is built on installation where a C++ compiler is found. Without it, on a GPU, for other dtypes and
layouts, and where the environment variable UOTOD_NATIVE is 0, the torch code computes the same. On a GPU that Triton
knows, the iteration of Sinkhorn is a kernel of Triton's, which the same variable switches off.

Every kernel is declared with the dtype and shape of each tensor and the type of each number (:class:`Kernel`). A
kernel is called only with arguments that match its declaration.
"""

import ctypes
import importlib.util
import os
import platform
import re
import warnings
import zlib
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.backends.cpu import get_cpu_capability
from torch.nn import Parameter

from .deferred import is_traced


def _load() -> Optional[ctypes.CDLL]:
    spec = importlib.util.find_spec('uotod_mmdet._native')
    # On x86 the compiled part needs AVX2 and FMA; on a CPU without them it would end the process. torch calls these
    # DEFAULT or, in older versions, NO AVX.
    old_cpu = platform.machine() in ('x86_64', 'AMD64') and not get_cpu_capability().startswith('AVX')
    if spec is None or old_cpu or os.environ.get('UOTOD_NATIVE') == '0':
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        sources = sorted((Path(__file__).parent.parent / 'csrc').iterdir())
        library.uotod_sources.restype = ctypes.c_int64
        if library.uotod_sources() == zlib.crc32(b''.join(path.read_bytes() for path in sources)):
            return library
        reason = 'was built from other sources'
    except (OSError, AttributeError) as error:  # built for another system, or long ago
        reason = f'does not load ({error})'
    warnings.warn(
        f'uotod_mmdet: {spec.origin} {reason} and is not used, which costs time on a CPU. Remove that file and build '
        'it again: make env, or pip install --no-build-isolation -e .',
        stacklevel=2,
    )
    return None


library = _load()
"""The compiled part; None: there is none."""

has_triton = os.environ.get('UOTOD_NATIVE') != '0' and importlib.util.find_spec('triton') is not None
"""Whether kernels for a GPU may be compiled by Triton."""

_DTYPES = dict(f32=torch.float32, f64=torch.float64, i64=torch.int64, bool=torch.bool)


class Kernel:
    """A function of the compiled part and what it takes.

    Args:
        name: The exported function.
        arguments: Declarations in the order of the C++ parameters, split by commas:

            - ``name: dtype[sizes]``, a contiguous tensor of f32, f64, i64 or bool. A size is a number or a name, which
              stands for the same size wherever it appears. ``dtype[sizes]?`` may be None, a null pointer;
              ``dtype[sizes]~`` may have rows of any distance: only its last dimension is contiguous. ``?~``: both.
            - ``name: int`` or ``name: float``, a number that the caller gives.
            - ``name`` alone, the size of that name; ``name.stride``, the distance of the rows of the tensor, in
              elements.

            The number of threads is added automatically.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self.name = name
        self.declaration = arguments
        self.tensors: dict[str, tuple] = {}
        self.numbers: dict[str, type] = {}
        self.order: list[str] = []
        for declaration in re.split(r',\s*', arguments):
            argument, _, kind = declaration.partition(': ')
            self.order.append(argument)
            if kind in ('int', 'float'):
                self.numbers[argument] = int if kind == 'int' else float
            elif kind:
                declared = re.fullmatch(r'(\w+)\[(.*)\](\??~?)', kind)
                assert declared is not None, kind
                dtype, sizes, mark = declared.groups()
                shape = tuple(int(size) if size.isdigit() else size for size in sizes.split())
                self.tensors[argument] = _DTYPES[dtype], shape, mark
        self.names = {*self.tensors, *self.numbers}

    def bind(self, **tensors: Optional[Tensor]) -> 'Optional[Call]':
        """A call with some or all of the tensors; None: they are not as declared, or there is no compiled part."""
        sizes: dict[str, int] = {}
        if library is None or is_traced() or self.misfit(tensors, sizes) is not None:
            return None
        return Call(self, tensors, sizes)

    def __call__(self, **arguments: Any) -> int:
        """Run the kernel with all arguments; see :class:`Call`."""
        if is_traced():
            raise TypeError(f'{self.name} cannot be traced')
        return Call(self, {}, {})(**arguments)

    def misfit(self, arguments: dict, sizes: dict) -> Optional[str]:
        """The first argument that is not as declared; ``sizes`` gets the sizes and distances of rows by name."""
        tensors = self.tensors
        for name, value in arguments.items():
            if name not in tensors:
                if name not in self.numbers or not isinstance(value, self.numbers[name]):
                    return name
                continue
            dtype, shape, mark = tensors[name]
            if value is None and '?' in mark:
                continue
            kind = type(value)
            if (
                (kind is not Tensor and kind is not Parameter)
                or value.dtype is not dtype
                or not value.is_cpu
                or value.layout is not torch.strided
                or value.is_neg()
            ):
                return name
            if '~' in mark:
                distance = _distance(value)
                if distance is None:
                    return name
                sizes[f'{name}.stride'] = distance
            elif not value.is_contiguous():
                return name
            found = value.shape
            if len(found) != len(shape):
                return name
            for size, expected in zip(found, shape):
                if sizes.setdefault(expected, expected if type(expected) is int else size) != size:
                    return name
        return None


class Call(NamedTuple):
    """A call of a kernel some of whose arguments are given and checked."""

    kernel: Kernel
    given: dict[str, Optional[Tensor]]
    sizes: dict[str, int]

    def __call__(self, **others: Any) -> int:
        """Run the kernel with the other arguments.

        Returns:
            What the function returns, >= 0.

        Raises:
            TypeError: If an argument is not as declared.
            IndexError: If a tensor holds an index out of range.
            MemoryError: If there is not enough memory.
        """
        kernel, given, sizes = self.kernel, self.given, dict(self.sizes)
        misfit = kernel.misfit(others, sizes)
        if misfit is not None:
            raise TypeError(f'{kernel.name}: {misfit} does not fit {kernel.declaration}')
        arguments = {**given, **others}
        if arguments.keys() != kernel.names:
            raise TypeError(
                f'{kernel.name} takes {", ".join((*kernel.tensors, *kernel.numbers))}; got {", ".join(arguments)}'
            )
        converted: list[Any] = []
        for name in kernel.order:
            if name in kernel.tensors:
                tensor = arguments[name]
                converted.append(c_void_p(None if tensor is None else tensor.data_ptr()))
            elif name in sizes:
                converted.append(c_int64(sizes[name]))
            elif name in kernel.numbers:
                converted.append((c_double if kernel.numbers[name] is float else c_int64)(arguments[name]))
            else:  # the size, or the distance of the rows, of a tensor that is None
                converted.append(c_int64(0))
        result = getattr(library, kernel.name)(*converted, c_int(torch.get_num_threads()))
        if result == -1:
            raise MemoryError(f'{kernel.name}: not enough memory')
        if result == -2:
            raise IndexError(f'{kernel.name}: an index lies outside what the index refers to')
        return result


def _distance(tensor: Tensor) -> Optional[int]:
    """Distance of the rows (of a vector: of the entries) in elements; None where rows overlap or lie irregularly."""
    *shape, width = tensor.shape
    if tensor.dim() == 1 or tensor.numel() == 0:
        return tensor.stride(0)
    distance = tensor.stride(-2) if shape[-1] > 1 else max(tensor.stride(-2), width)
    expected, regular = distance, distance >= width and (tensor.stride(-1) == 1 or width == 1)
    for axis in reversed(range(len(shape))):
        regular = regular and (shape[axis] == 1 or tensor.stride(axis) == expected)
        expected *= shape[axis]
    return distance if regular else None
