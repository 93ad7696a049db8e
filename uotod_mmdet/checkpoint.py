"""Reading mmengine's checkpoints with torch's restricted unpickler."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from packaging.version import Version


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine writes.

    mmengine's checkpoints hold the logged scalars as ``HistoryBuffer`` objects around numpy arrays, and each of these
    carries its methods, which pickle stores as calls of ``getattr``. Allowing ``getattr`` would undo the
    protection of ``weights_only``, so a function that returns these methods only takes its place.

    Each object is allowed as a pair with its name. The maintained fork of mmengine allows the bare objects while a
    checkpoint is read, and then takes these, and no pairs, off torch's list.
    """
    if Version(torch.__version__) < Version('2.6'):
        return
    numpy: Any = np
    core = numpy._core if Version(np.__version__) >= Version('2') else numpy.core
    dtypes = {type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'float16', 'float32', 'float64')}
    bare = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    pairs = [(allowed, f'{allowed.__module__}.{allowed.__qualname__}') for allowed in bare]
    for function in (core.multiarray._reconstruct, core.multiarray.scalar):
        # As numpy 1 and as numpy 2 write them.
        pairs += [(function, f'numpy.{folder}.multiarray.{function.__name__}') for folder in ('core', '_core')]
    torch.serialization.add_safe_globals([*pairs, (_history_method, 'builtins.getattr')])


def _history_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for {name!r} of {owner!r}')
    return getattr(owner, name)
