"""What the losses share that learn the quality of each pair of prediction and ground truth."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import mmdet.models.losses
import torch
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.ops import focal_rows, pays_in_blocks, power, softplus
from uotod_mmdet.plan import Pairs, Reading, Rows, entries

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


def pair_losses_of_rows(loss: Any, rows: Rows) -> Optional[Tensor]:
    """Losses (B * N,) of a :class:`PairQualityLoss` under a plan, without copying the scores of each pair.

    A prediction's score of a class counts as positive by its mass on ground truths of that class, and as negative by
    the rest of its mass.
    """
    if rows.num_negatives is not None:
        return None
    scores, pairs, mass = loss.logits(rows.scores), rows.pairs, rows.pairs.row_mass
    places = pairs.rows * scores.size(1) + rows.labels
    target = loss.target(scores.detach().flatten()[places], rows.quality().to(scores.dtype), pairs)

    def positives(logits: Tensor) -> Tensor:
        return (pairs.weight * loss.positive(logits, target)).to(scores.dtype)

    def negatives(logits: Tensor, of_mass: Tensor) -> Tensor:
        return loss.negative_factor * of_mass.clamp(min=0) * power(logits.sigmoid(), loss.gamma) * softplus(logits)

    if not pays_in_blocks(scores):  # listing the entries waits for the GPU
        rest = mass[:, None].expand_as(scores).flatten().scatter_add(0, places, -pairs.weight).view_as(scores)
        losses = negatives(scores, rest).sum(1)
        return loss.loss_weight * losses.scatter_add(0, pairs.rows, positives(scores.flatten()[places]))
    index, entry, weight = entries(rows)
    rest = mass[index.div(scores.size(1), rounding_mode='floor')] - weight

    def entry_losses(logits: Tensor) -> Tensor:
        return negatives(logits, rest).to(scores.dtype).index_add(0, entry, positives(logits[entry]))

    return loss.loss_weight * focal_rows(scores, loss.gamma, loss.negative_factor * mass, index, entry_losses)


class PairQualityLoss(mmdet.models.losses.QualityFocalLoss):
    """Base of the losses whose positives learn a target made of the quality of their pair.

    An entry of logit x, p = sigmoid(x), of no ground truth costs ``negative_factor`` p^gamma BCE(p, 0). One of a pair
    costs :meth:`positive`, whose target :meth:`target` makes of the pair's quality. Under a plan each pair weighs its
    mass. mmdet's heads hand qualities to its QualityFocalLoss and subclasses only, hence the base.

    Args:
        gamma: Exponent of the probability in the loss of negatives, >= 0.
        use_sigmoid (bool): Must be True.
        reduction (str): 'none', 'mean' or 'sum'. mmdet's heads need 'mean'.
        loss_weight (float): Factor of the loss.
        activated (bool): Whether predictions are probabilities, as those of TOODHead.
    """

    plan_reading = Reading(target='pair quality', faster=pair_losses_of_rows)
    negative_factor: float = 1.0

    def __init__(
        self,
        gamma: float,
        use_sigmoid: bool = True,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        name = type(self).__name__
        if not switch(f'{name}: use_sigmoid', use_sigmoid):
            raise ValueError(f'{name}: use_sigmoid must be True; the loss scores each class by a sigmoid.')
        super().__init__(
            reduction=reduction,
            loss_weight=number(f'{name}: loss_weight', loss_weight),
            activated=switch(f'{name}: activated', activated),
        )
        self.gamma = number(f'{name}: gamma', gamma, at_least=0)

    def logits(self, pred: Tensor) -> Tensor:
        """Predictions in full precision, probabilities as logits of at most about 16 in size."""
        pred = full_precision(pred)
        return pred.logit(eps=torch.finfo(torch.float32).eps) if self.activated else pred

    def target(self, logits: Tensor, quality: Tensor, pairs: Optional[Pairs] = None) -> Tensor:
        """Target of each pair, (K,).

        Args:
            logits: Logits of the pairs' classes, without gradient, (K,).
            quality: Qualities (IoU) of the pairs, (K,).
            pairs: The plan, where the loss is one of a plan.
        """
        return quality

    def positive(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each pair, (K,), from its logit and its target."""
        return softplus(logits) - logits * target

    def forward(
        self,
        pred: Tensor,
        target: Union[Tensor, Sequence[Tensor]],
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """Compute the loss, summed over classes.

        Args:
            pred: (N, C) logits, or probabilities where ``activated``.
            target: Pair (label, score), both (N,): class in [0, C), C for background, and the quality in [0, 1] of the
                foreground rows; or (N, C) qualities, positive where a ground truth is.
            weight: (N,), one per row.
            avg_factor: Divides the sum in place of the number of rows; needs 'mean', ignored with 'none'.
            reduction_override: Replaces ``reduction``.

        Returns:
            (N,) with reduction 'none', else a scalar; the mean of no rows is 0.

        Raises:
            TypeError: If an argument is not a tensor, or labels are of a wrong dtype.
            ValueError: If shapes do not fit, a label is not a whole number in [0, C], a quality or a probability lies
                outside [0, 1], ``pred`` holds NaN, or the loss is not finite.
        """
        name = type(self).__name__
        reduction = self.reduction if reduction_override is None else reduction_override
        check_reduction(name, reduction, avg_factor)
        check_pred(name, pred, '(N, C)', dims=2)
        check_weight(name, weight, pred.shape[:1])
        faults: list[Fault] = []
        if self.activated:
            faults.append(probabilities_fault(pred))
        logits = self.logits(pred)
        wanted = read_target(name, logits, target, faults)
        if pays_in_blocks(logits):
            index, quality = quality_entries(wanted, logits.size(1))
            factor = row_factor(weight, reduction, avg_factor, logits, len(logits))
            wanted = self.target(logits.detach().flatten()[index], quality.to(logits.dtype))
            of_entries = factor[index.div(logits.size(1), rounding_mode='floor')]

            def entry_losses(x: Tensor) -> Tensor:
                return of_entries * self.positive(x, wanted)

            rows = focal_rows(logits, self.gamma, self.negative_factor * factor, index, entry_losses)
            loss = checked(name, rows if reduction == 'none' else rows.sum(), pred, weight, avg_factor, faults)
            return self.loss_weight * loss
        if isinstance(wanted, Tensor):
            quality, is_pair = wanted.to(logits.dtype), wanted > 0
        else:
            label, _ = wanted
            quality, is_pair = spread(logits, *wanted), spread(logits, label, label < logits.size(1)) > 0
        negative = self.negative_factor * power(logits.sigmoid(), self.gamma) * softplus(logits)
        positive = self.positive(logits, self.target(logits.detach(), quality))
        losses = torch.where(is_pair, positive, negative).sum(1)
        return self.loss_weight * reduce_and_check(name, losses, pred, weight, reduction, avg_factor, faults)
