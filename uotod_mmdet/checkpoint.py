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
    """
    if Version(torch.__version__) < Version('2.6'):
        return
    numpy: Any = np
    core = numpy._core if Version(np.__version__) >= Version('2') else numpy.core
    dtypes = {type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'float16', 'float32', 'float64')}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            np.ndarray,
            np.dtype,
            *dtypes,
        ]
    )


def _history_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for {name!r} of {owner!r}')
    return getattr(owner, name)
