"""Distribution Focal Loss: a box side as a distribution over whole distances."""

from typing import Optional, Union

import mmdet.models.losses
import torch
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import softmax_rows
from uotod_mmdet.registry import MODELS

from .checks import (
    Fault,
    check_pred,
    check_reduction,
    check_tensor,
    check_weight,
    full_precision,
    outside,
    reduce_and_check,
    span,
)

NAME = 'DistributionFocalLoss'


def distribution_focal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    *,
    reduction: str = 'mean',
    avg_factor: Optional[Union[float, Tensor]] = None,
) -> Tensor:
    """Distribution Focal Loss, -((i + 1 - y) log S_i + (y - i) log S_{i+1}), i = floor(y), S = softmax(pred).

    Generalized Focal Loss, https://arxiv.org/abs/2006.04388, equation 6. At y = n, where mmdet 3.3 raises IndexError,
    bin n has all the weight.

    Args:
        pred: (N, n + 1) logits of the distances 0, ..., n; n is the head's ``reg_max``.
        target: (N,) distances in [0, n], in strides.
        weight: (N,), one per row.
        reduction: 'none' for (N,), 'mean' or 'sum' for a scalar. The mean of no rows is 0 (mmdet's is NaN).
        avg_factor: Divides the sum in place of the number of rows; needs 'mean', ignored with 'none'.

    Raises:
        TypeError: If ``pred``, ``target`` or ``weight`` is no tensor.
        ValueError: If shapes do not fit, a target lies outside [0, n], ``pred`` holds NaN, or the loss is not finite.
    """
    check_reduction(NAME, reduction, avg_factor)
    check_pred(NAME, pred, '(N, n + 1)', dims=2)
    check_tensor(NAME, 'target', target, pred.shape[:1], 'It holds one distance per row of pred.')
    check_weight(NAME, weight, pred.shape[:1])
    reg_max = pred.shape[1] - 1
    faults: list[Fault] = [
        (
            outside(target, 0, reg_max),
            lambda: (
                f'target must lie in [0, {reg_max}], as pred has reg_max {reg_max} ({reg_max + 1} bins); it lies '
                f'in {span(target)}. A box that reaches further than reg_max strides from its prior needs a larger '
                'reg_max in the head, or more levels (larger strides).'
            ),
        )
    ]

    logits = full_precision(pred)
    left = target.detach().nan_to_num(0).clamp(0, reg_max).long()
    share = target.to(logits.dtype) - left
    rows = torch.arange(logits.size(0), device=logits.device)[:, None].expand(-1, 2).flatten()
    labels = torch.stack([left, (left + 1).clamp(max=reg_max)], 1).flatten()
    # Cross-entropy with the two bins beside the target.
    loss = softmax_rows(
        logits, 0, torch.zeros_like(logits[:, 0]), rows, labels, torch.stack([1 - share, share], 1).flatten()
    )
    return reduce_and_check(NAME, loss, pred, weight, reduction, avg_factor, faults)


@MODELS.register_module()
class DistributionFocalLoss(mmdet.models.losses.DistributionFocalLoss):
    """mmdet's DistributionFocalLoss with the same arguments, y = n, and checks; see :func:`distribution_focal_loss`.

    Args:
        reduction (str): 'none', 'mean' or 'sum'. mmdet's heads need 'mean'. Defaults to 'mean'.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(reduction=reduction, loss_weight=number(f'{NAME}: loss_weight', loss_weight))

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """Compute the loss, (N,) with reduction 'none', else a scalar; arguments, errors: see the function."""
        return self.loss_weight * distribution_focal_loss(
            pred,
            target,
            weight,
            reduction=self.reduction if reduction_override is None else reduction_override,
            avg_factor=avg_factor,
        )
