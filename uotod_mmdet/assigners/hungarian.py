"""One-to-one matching at the least total cost."""

from typing import Optional

from torch import Tensor

from uotod_mmdet.ops import one_hot_plan
from uotod_mmdet.ot import assignment
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner


@TASK_UTILS.register_module()
class HungarianAssigner(TransportAssigner):
    """Each ground truth to one prediction, the rest of the predictions to the background, at the least total cost.

    The limit of balanced transport for reg -> 0 (De Plaen et al., CVPR 2023, Proposition 1). On the same costs it is
    mmdet's HungarianAssigner; ``match`` does a whole batch in one transfer to the host. With more ground truths than
    predictions (M > N) each prediction gets a ground truth, and M - N ground truths get no prediction.

    Args: see :class:`TransportAssigner`. ``background_cost`` has no effect.
    """

    def _solve(self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor) -> Tensor:
        columns = assignment(cost[:, :, :-1], gt_mask, pred_mask)
        return one_hot_plan(columns, pred_mask, self.background, cost)
