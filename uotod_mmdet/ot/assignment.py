"""Exact one-to-one assignment, the limit of transport without regularisation."""

from typing import Optional

import torch
from torch import Tensor

from uotod_mmdet.ops import assign, is_traced


@torch.compiler.disable
def assignment(cost: Tensor, column_mask: Optional[Tensor] = None, row_mask: Optional[Tensor] = None) -> Tensor:
    """Assign rows to columns one-to-one at the least total cost, for each problem of a batch.

    With fewer rows than real columns, every row is used and some columns stay free; otherwise every real column is
    used. On a GPU the batch goes to the host in one transfer.

    Args:
        cost: Finite costs of any real dtype, (B, N, M).
        column_mask: False on padded columns, (B, M). None: all are real.
        row_mask: False on padded rows, (B, N). None: all are real.

    Returns:
        Column of each row, -1 where it has none, (B, N).

    Raises:
        TypeError: If ``cost`` or a mask is not a tensor.
        ValueError: If ``cost`` or a mask has another shape or dtype, or a real entry of ``cost`` is not finite.
        RuntimeError: If torch.export or torch.func traces the call; torch.compile goes around the call.
    """
    for name, values in (('cost', cost), ('row_mask', row_mask), ('column_mask', column_mask)):
        if not isinstance(values, Tensor) and (values is not None or name == 'cost'):
            raise TypeError(f'{name} must be a tensor, got {type(values).__name__}')
    if cost.dim() != 3 or cost.is_complex():
        raise ValueError(f'cost must be real, of shape (B, N, M), got {cost.dtype} of shape {tuple(cost.shape)}')
    if is_traced():
        raise RuntimeError(
            'an exact assignment is solved by scipy on the host, which torch.export and the transforms of torch.func '
            'cannot trace: leave the matching out of what is traced, or take a strategy that stays on the device, such '
            'as BalancedSinkhornAssigner'
        )
    batch, rows, columns = cost.shape
    for name, mask, shape in (('row_mask', row_mask, (batch, rows)), ('column_mask', column_mask, (batch, columns))):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
            raise ValueError(f'{name} must be bool of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}')
    return assign(cost, row_mask, column_mask)
