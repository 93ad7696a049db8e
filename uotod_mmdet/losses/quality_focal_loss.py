"""Quality Focal Loss: one score per class that is also the quality of the box."""

from collections.abc import Sequence
from typing import Optional, Union

import mmdet.models.losses
import torch
import torch.nn.functional as F
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import pays_in_blocks, power
from uotod_mmdet.plan import Reading, faster_quality, quality_focal_rows
from uotod_mmdet.registry import MODELS

from .checks import (
    Fault,
    check_pred,
    check_reduction,
    check_weight,
    checked,
    full_precision,
    reduce_and_check,
)
from .quality_targets import probabilities_fault, quality_entries, read_target, spread
from .rows import row_factor

NAME = 'QualityFocalLoss'


def quality_focal_loss(
    pred: Tensor,
    target: Union[Tensor, Sequence[Tensor]],
    weight: Optional[Tensor] = None,
    *,
    beta: float = 2.0,
    activated: bool = False,
    reduction: str = 'mean',
    avg_factor: Optional[Union[float, Tensor]] = None,
) -> Tensor:
    """Quality Focal Loss, |y - p|^beta BCE(p, y) summed over classes, p = sigmoid(pred).

    Generalized Focal Loss, https://arxiv.org/abs/2006.04388, equation 2.

    Args:
        pred: (N, C) logits, or probabilities where ``activated``.
        target: Pair (label, score), both (N,): class in [0, C), C for background, and the quality in [0, 1] of the
            foreground rows (the score of a background row is never read); or (N, C) soft targets in [0, 1].
        weight: (N,), one per row.
        beta: Exponent of the modulating factor, >= 0.
        activated: Whether ``pred`` holds probabilities.
        reduction: 'none' for (N,), 'mean' or 'sum' for a scalar. The mean of no rows is 0 (mmdet's is NaN).
        avg_factor: Divides the sum in place of the number of rows; needs 'mean', ignored with 'none'.

    Raises:
        TypeError: If ``pred``, a target or ``weight`` is not a tensor, or labels are of a wrong dtype; if ``beta``
            or ``avg_factor`` is not a number.
        ValueError: If shapes do not fit, a label is not a whole number in [0, C], a score, a soft target or a
            probability lies outside [0, 1], ``beta`` is negative, ``pred`` holds NaN, or the loss is not finite.
    """
    check_reduction(NAME, reduction, avg_factor)
    beta = number(f'{NAME}: beta', beta, at_least=0)
    check_pred(NAME, pred, '(N, C)', dims=2)
    check_weight(NAME, weight, pred.shape[:1])
    x = full_precision(pred)
    faults: list[Fault] = []
    if activated:
        faults.append(probabilities_fault(x))
        x = torch.where(faults[0][0], 0.5, x)  # torch aborts the whole CUDA process on an illegal probability
    wanted = read_target(NAME, x, target, faults)

    if not activated and pays_in_blocks(x):
        index, quality = quality_entries(wanted, x.size(1))
        factor = row_factor(weight, reduction, avg_factor, x, len(x))
        rows = quality_focal_rows(x, index, quality.to(x.dtype), factor, beta)
        return checked(NAME, rows if reduction == 'none' else rows.sum(), pred, weight, avg_factor, faults)

    soft = wanted.to(x.dtype) if isinstance(wanted, Tensor) else spread(x, *wanted)
    if soft.requires_grad and isinstance(wanted, Tensor):
        # as in mmdet and in blocks, a dense target of 0 has no gradient
        soft = torch.where(soft > 0, soft, 0)
    if activated:
        # Nor may targets be illegal: the last fault is theirs; rounding errors are clamped.
        soft = torch.where(faults[-1][0], 0.5, soft).clamp(0, 1)
        with torch.autocast(x.device.type, enabled=False):  # autocast refuses the cross-entropy of probabilities
            entropy = F.binary_cross_entropy(x, soft, reduction='none')
        distance = soft - x
    else:
        entropy = F.binary_cross_entropy_with_logits(x, soft, reduction='none')
        distance = soft - x.sigmoid()
    if beta % 2:  # an even power needs no absolute value
        distance = distance.abs()
    loss = (entropy * power(distance, beta)).sum(1)
    return reduce_and_check(NAME, loss, pred, weight, reduction, avg_factor, faults)


@MODELS.register_module()
class QualityFocalLoss(mmdet.models.losses.QualityFocalLoss):
    """mmdet's QualityFocalLoss with the same arguments, and input checks; see :func:`quality_focal_loss`.

    Args:
        use_sigmoid (bool): Must be True.
        beta (float): Exponent of the modulating factor. Defaults to 2.0.
        reduction (str): 'none', 'mean' or 'sum'. mmdet's heads need 'mean'. Defaults to 'mean'.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        activated (bool): Whether predictions are probabilities. Defaults to False.
    """

    plan_reading = Reading(target='quality', faster=faster_quality)

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(
            use_sigmoid=use_sigmoid,
            beta=number(f'{NAME}: beta', beta, at_least=0),
            reduction=reduction,
            loss_weight=number(f'{NAME}: loss_weight', loss_weight),
            activated=switch(f'{NAME}: activated', activated),
        )

    def forward(
        self,
        pred: Tensor,
        target: Union[Tensor, Sequence[Tensor]],
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """Compute the loss, (N,) with reduction 'none', else a scalar; arguments, errors: see the function."""
        return self.loss_weight * quality_focal_loss(
            pred,
            target,
            weight,
            beta=self.beta,
            activated=self.activated,
            reduction=self.reduction if reduction_override is None else reduction_override,
            avg_factor=avg_factor,
        )
