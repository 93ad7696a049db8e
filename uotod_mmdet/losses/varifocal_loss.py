"""Varifocal Loss: foreground counts by its quality, background by how wrong it is."""

from typing import Optional, Union

import mmdet.models.losses
import torch
import torch.nn.functional as F
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import pays_in_blocks, power
from uotod_mmdet.plan import Reading, faster_varifocal, varifocal_rows
from uotod_mmdet.registry import MODELS

from .checks import (
    Fault,
    check_pred,
    check_reduction,
    check_tensor,
    check_weight,
    checked,
    full_precision,
    outside,
    reduce_and_check,
    span,
)
from .rows import nonzero_entries, row_factor

NAME = 'VarifocalLoss'


def varifocal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    reduction: str = 'mean',
    avg_factor: Optional[Union[float, Tensor]] = None,
) -> Tensor:
    """Varifocal Loss, q BCE(p, q) where q > 0, else alpha p^gamma BCE(p, 0); p = sigmoid(pred).

    VarifocalNet, https://arxiv.org/abs/2008.13367, equation 2.

    Args:
        pred: (N, C) logits; other shapes are taken as well, entry by entry.
        target: Qualities q in [0, 1], shaped like ``pred``: the IoU at a row's class, 0 elsewhere.
        weight: Shaped like ``pred``, or broadcast to it.
        alpha: Factor of the entries with q = 0, >= 0.
        gamma: Exponent of the modulating factor, >= 0.
        iou_weighted: Whether entries with q > 0 count by q; False: by 1.
        reduction: 'none' for the shape of ``pred``, 'mean' or 'sum' for a scalar. The mean runs over entries, not
            rows; the mean of none is 0 (mmdet's is NaN).
        avg_factor: Divides the sum in place of the number of entries; needs 'mean', ignored with 'none'.

    Raises:
        TypeError: If ``pred``, ``target`` or ``weight`` is not a tensor; if ``alpha``, ``gamma`` or ``avg_factor``
            is not a number.
        ValueError: If shapes do not fit, a target lies outside [0, 1], ``alpha`` or ``gamma`` is negative, ``pred``
            holds NaN, or the loss is not finite.
    """
    check_reduction(NAME, reduction, avg_factor)
    alpha, gamma = number(f'{NAME}: alpha', alpha, at_least=0), number(f'{NAME}: gamma', gamma, at_least=0)
    check_pred(NAME, pred, '(N, C)')
    check_tensor(
        NAME, 'target', target, pred.shape, 'It holds one quality per row and class, 0 where another class is.'
    )
    check_weight(NAME, weight, pred.shape)
    faults: list[Fault] = [
        (outside(target, 0, 1), lambda: f'target must lie in [0, 1]; it lies in {span(target)}.'),
    ]

    logits = full_precision(pred)
    by_row = _by_row(weight, pred)
    if by_row and reduction != 'none' and pred.dim() == 2 and pays_in_blocks(pred) and not target.requires_grad:
        index, quality = nonzero_entries(target)
        weight_of_rows = weight.flatten() if isinstance(weight, Tensor) else weight
        factor = row_factor(weight_of_rows, reduction, avg_factor, logits, logits.numel())
        rows = varifocal_rows(logits, index, quality.to(logits.dtype), factor, alpha, gamma, iou_weighted)
        return checked(NAME, rows.sum(), pred, weight, avg_factor, faults)
    quality = target.to(logits.dtype)
    positive = quality if iou_weighted else 1.0
    distance = logits.sigmoid()
    if target.requires_grad:  # entries whose target is 0 have gradients, too
        distance = (distance - quality).abs()
    focal = torch.where(quality > 0, positive, alpha * power(distance, gamma))
    loss = F.binary_cross_entropy_with_logits(logits, quality, reduction='none') * focal
    return reduce_and_check(NAME, loss, pred, weight, reduction, avg_factor, faults)


def _by_row(weight: Optional[Union[float, Tensor]], pred: Tensor) -> bool:
    """Whether the weight is the same for all entries of a row."""
    return not isinstance(weight, Tensor) or weight.numel() == 1 or weight.shape == (*pred.shape[:1], 1)


@MODELS.register_module()
class VarifocalLoss(mmdet.models.losses.VarifocalLoss):
    """mmdet's VarifocalLoss with the same arguments, and input checks; see :func:`varifocal_loss`.

    Args:
        use_sigmoid (bool): Must be True.
        alpha (float): Factor of the entries without quality. Defaults to 0.75.
        gamma (float): Exponent of the modulating factor. Defaults to 2.0.
        iou_weighted (bool): Whether foreground counts by its quality. Defaults to True.
        reduction (str): 'none', 'mean' or 'sum'. mmdet's heads need 'mean'. Defaults to 'mean'.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
    """

    plan_reading = Reading(target='quality', weight='entry', faster=faster_varifocal)

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            use_sigmoid=use_sigmoid,
            alpha=number(f'{NAME}: alpha', alpha, at_least=0),
            gamma=number(f'{NAME}: gamma', gamma, at_least=0),
            iou_weighted=switch(f'{NAME}: iou_weighted', iou_weighted),
            reduction=reduction,
            loss_weight=number(f'{NAME}: loss_weight', loss_weight),
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """Compute the loss, shaped like pred with reduction 'none', else a scalar; the rest: see the function."""
        return self.loss_weight * varifocal_loss(
            pred,
            target,
            weight,
            alpha=self.alpha,
            gamma=self.gamma,
            iou_weighted=self.iou_weighted,
            reduction=self.reduction if reduction_override is None else reduction_override,
            avg_factor=avg_factor,
        )
