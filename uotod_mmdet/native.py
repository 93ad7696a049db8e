"""The compiled part (csrc/), which does in float32 on a processor what the rest does in torch, several times faster.

It is built on installation where a C++ compiler is found. Without it, on a GPU, in other dtypes, and where the
environment variable UOTOD_NATIVE is 0, the torch code does the same.
"""

import ctypes
import importlib.util
import os
import platform
import warnings
import zlib
from pathlib import Path
from typing import Optional, Union

import torch
from torch import Tensor


def _load() -> Optional[ctypes.CDLL]:
    spec = importlib.util.find_spec('uotod_mmdet._native')
    old_processor = platform.machine() in ('x86_64', 'AMD64') and torch.backends.cpu.get_cpu_capability() == 'DEFAULT'
    if spec is None or old_processor or os.environ.get('UOTOD_NATIVE') == '0':
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        sources = sorted((Path(__file__).parent / 'csrc').iterdir())
        library.uotod_sources.restype = ctypes.c_int64
        if library.uotod_sources() == zlib.crc32(b''.join(path.read_bytes() for path in sources)):
            return library
    except (OSError, AttributeError):  # built for another system, or long ago
        pass
    warnings.warn(
        f'uotod_mmdet: {spec.origin} was built from other sources or for another system and is not used, which costs '
        'time on a processor. Build it again: make env, or pip install --no-build-isolation -e .',
        stacklevel=2,
    )
    return None


library = _load()
"""The compiled part; None: there is none."""


def fits(*tensors: Tensor) -> bool:
    """Whether the compiled part can work on the tensors: contiguous, float32 or int64, on the processor."""
    return library is not None and all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == 'cpu'
        and tensor.dtype in (torch.float32, torch.int64)
        and tensor.is_contiguous()
        for tensor in tensors
    )


def call(name: str, *arguments: Union[Tensor, int, float]) -> int:
    """Call a function of the library on the data of tensors and on numbers; the number of threads comes last.

    Raises:
        MemoryError: If there is not enough memory.
    """
    converted = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            converted.append(ctypes.c_double(argument))
        else:
            converted.append(ctypes.c_int64(argument))
    result = getattr(library, name)(*converted, ctypes.c_int(torch.get_num_threads()))
    if result < 0:
        raise MemoryError(f'{name}: not enough memory')
    return result
