"""Listing the entries of a plan that carry weight."""

import numpy as np
import torch
from torch import Tensor

from . import deferred
from .deferred import is_traced

ALL = 1 << 20
"""Entries up to which all may be listed."""


def list_nonzero(kept: Tensor, plan: Tensor, few: bool) -> tuple[Tensor, Tensor]:
    """Places of the entries that ``kept`` marks in the flattened plan.

    Args:
        kept: (B, N, M + 1), bool, False in the last column.
        plan: (B, N, M + 1).
        few: Whether only kept entries may be listed. Otherwise all but those of the last column are listed where
            finding the kept ones would make the host wait. Traced code has no number that depends on values, so that
            all are listed there in any case.

    Returns:
        Places (K,), ascending, and the plan, 0 at listed entries that are not kept.
    """
    columns = kept.size(2)
    if (not few or is_traced()) and plan.numel() <= ALL and not deferred.host_may_wait(plan):
        plan = torch.cat([torch.where(kept, plan, 0)[:, :, :-1], plan[:, :, -1:]], dim=2)
        index = torch.arange(kept.numel() // columns * (columns - 1), device=kept.device)
        return index + index.div(max(columns - 1, 1), rounding_mode='floor'), plan
    if kept.is_cuda or is_traced() or type(kept) is not Tensor:
        return kept.flatten().nonzero()[:, 0], plan
    return torch.from_numpy(np.flatnonzero(kept.numpy())), plan  # four times faster than torch
