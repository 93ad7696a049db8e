"""Check that a plan can weigh a loss: the loss is tried on a few rows when a head is built.

A plan weighs rows, and heads divide by what they count. So a loss must be mmdet's usual one: ``forward(pred, target,
weight, avg_factor=..., reduction_override=...)``, in which the loss of a row depends on that row alone, is multiplied
by its weight, and is summed and divided by ``avg_factor``. A trial works for any loss, third-party losses included.
"""

import copy
import re
from typing import Any, Union

import torch
from torch import Tensor, nn

from .classification import reading_of, sum_by_row

ROWS = 6
MASK_LOSSES = 'CrossEntropyLoss and FocalLoss, with use_sigmoid=True'
SIGMOID = (
    'FocalLoss, QualityFocalLoss, VarifocalLoss and CrossEntropyLoss, with use_sigmoid=True, and our '
    'MatchabilityAwareLoss, IoUAwareBCELoss and PositionSupervisedLoss'
)
SOFTMAX = f'CrossEntropyLoss, and {SIGMOID}'
BOX_LOSSES = (
    'L1Loss, SmoothL1Loss, BalancedL1Loss, MSELoss, IoULoss, BoundedIoULoss, GIoULoss, DIoULoss, CIoULoss, EIoULoss '
    'and SIoULoss'
)


def check_classification_loss(
    owner: str, loss: nn.Module, num_classes: int, columns: int, argument: str = 'loss_cls'
) -> None:
    """Check that a plan can weigh a classification loss.

    Args:
        owner: Whose argument the loss is, for messages.
        loss: The loss.
        num_classes: Number of foreground classes, and the label of the background.
        columns: Columns of the scores: ``num_classes``, or one more where the background has one.
        argument: Name of the argument.

    Raises:
        ValueError: If the loss does not fit, or its ``class_weight`` has a wrong length.
    """
    check_class_weight(owner, loss, columns, f'{num_classes} classes' + ' and the background' * (columns - num_classes))
    labels = torch.arange(ROWS) % (num_classes + 1)
    labels[-1] = num_classes
    pred = torch.linspace(0.1, 0.9, ROWS * columns).view(columns, ROWS).t().contiguous()
    weight = torch.linspace(0.5, 1.5, ROWS)
    target: Any = labels
    reading = reading_of(loss)
    weight = weight if reading.weight == 'row' else weight[:, None]
    if reading.target == 'quality':
        target = torch.zeros_like(pred)
        target[torch.arange(ROWS - 1), labels[:-1].clamp(max=columns - 1)] = 0.7
    elif reading.target == 'pair quality':
        target = labels, torch.where(labels < num_classes, 0.7, 0.0)
    check_loss(owner, argument, loss, pred, target, weight, SIGMOID if columns == num_classes else SOFTMAX)


def check_class_weight(owner: str, loss: nn.Module, columns: int, meaning: str) -> None:
    """Check the length of the ``class_weight`` that mmdet's cross-entropy losses have.

    Raises:
        ValueError: If it is not ``columns``; one number for all classes is legal under a sigmoid.
    """
    class_weight = getattr(loss, 'class_weight', None)
    if class_weight is None or (getattr(loss, 'use_sigmoid', False) and isinstance(class_weight, (int, float))):
        return
    count = 1 if isinstance(class_weight, (int, float)) else len(class_weight)
    if count != columns or isinstance(class_weight, (int, float)):
        raise ValueError(
            f'{owner}: class_weight of {type(loss).__name__} holds {count} number(s), but the scores have {columns} '
            f'columns: give a list of {columns}, one for each of the {meaning}.'
        )


def check_box_loss(owner: str, argument: str, loss: nn.Module) -> None:
    """Check that a plan can weigh a localisation loss, the argument ``argument`` of ``owner``.

    Raises:
        ValueError: If the loss does not fit.
    """
    corner = torch.linspace(0, 20, 2 * ROWS).view(ROWS, 2)
    target = torch.cat([corner, corner + torch.linspace(30, 60, 2 * ROWS).view(ROWS, 2)], 1)
    pred = target + torch.linspace(-4, 5, 4 * ROWS).view(4, ROWS).t()
    check_loss(owner, argument, loss, pred, target, torch.linspace(0.5, 1.5, ROWS)[:, None].expand(-1, 4), BOX_LOSSES)


def check_mask_losses(owner: str, loss_mask: nn.Module, loss_dice: nn.Module, labels: bool) -> None:
    """Check that a plan can weigh the losses of masks.

    Args:
        owner: Whose arguments ``loss_mask`` and ``loss_dice`` the losses are, for messages.
        loss_mask: Loss of each point of a mask.
        loss_dice: Loss of a whole mask.
        labels: Whether ``loss_mask`` gets one score (N, 1) and a label, 0 on the object, of each point, as in
            MaskFormerHead; if not, it gets logits (N,) and how much of each point is of the object, as in
            Mask2FormerHead.

    Raises:
        ValueError: If a loss does not fit.
    """
    logits, weight = torch.linspace(-2, 3, 8 * ROWS).view(8, ROWS).t().contiguous(), torch.linspace(0.5, 1.5, ROWS)
    target = (logits * 7).sin().abs()
    pred, of_points = (logits[:, :1], torch.arange(ROWS) % 2) if labels else (logits[:, 0], target[:, 0])
    check_loss(owner, 'loss_mask', loss_mask, pred, of_points, weight, MASK_LOSSES)
    check_loss(owner, 'loss_dice', loss_dice, logits, target, weight, 'DiceLoss')


def check_loss(
    owner: str,
    argument: str,
    loss: nn.Module,
    pred: Tensor,
    target: Union[Tensor, tuple[Tensor, Tensor]],
    weight: Tensor,
    fitting: str,
) -> None:
    """Try a loss on the rows of ``pred``.

    Args:
        owner: Whose argument the loss is.
        argument: Name of the argument.
        loss: The loss; a copy of it is tried.
        pred: Predictions, ROWS of them.
        target: Their targets: one tensor, or labels and qualities.
        weight: Their weights, in the shape in which the head gives them.
        fitting: Names of losses that fit.

    Raises:
        ValueError: If the loss does not fit, naming those that do.
    """
    name = type(loss).__name__
    reduction = getattr(loss, 'reduction', 'mean')
    if reduction != 'mean':
        raise ValueError(
            f"{owner}: {argument}={name} has reduction={reduction!r}, which has no effect on a plan's loss or ends in "
            'an error: leave reduction out of its config; its sum is divided by what the plan matches.'
        )
    loss = copy.deepcopy(loss)

    def attempt(rows: int, factor: float, **how: Any) -> Tensor:
        targets = [values[:rows].clone() for values in (target if isinstance(target, tuple) else [target])]
        wanted = tuple(targets) if isinstance(target, tuple) else targets[0]
        return loss(pred[:rows].clone(), wanted, (factor * weight[:rows]).clone(), **how)

    try:
        with torch.no_grad():
            losses = attempt(len(pred), 1.0, reduction_override='none')
            if not isinstance(losses, Tensor) or losses.shape[:1] != pred.shape[:1]:
                shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                why = f'without reduction it gives {shape} for {len(pred)} rows, not one loss for each'
            else:
                losses, rows = sum_by_row(losses), len(pred) // 2
                part = sum_by_row(attempt(rows, 2.0, reduction_override='none'))
                averaged = attempt(len(pred), 1.0, avg_factor=2.0)
                if not torch.allclose(part, 2 * losses[:rows], rtol=1e-3, atol=1e-6):
                    why = 'the loss of a row depends on other rows, or is not multiplied by its weight'
                elif not torch.allclose(averaged, losses.sum() / 2, rtol=1e-3, atol=1e-6):
                    why = 'it does not divide the sum of its rows by avg_factor'
                else:
                    return
    except Exception as error:
        if isinstance(error, RuntimeError) and re.search('cpu|cuda|device', str(error), re.IGNORECASE):
            return  # made for one device only, so that it cannot be tried here
        why = f'called as mmdet calls losses it ends in {type(error).__name__}: {error}'.rstrip('. ')
    raise ValueError(
        f'{owner}: a plan cannot weigh {argument}={name}: {why}. Losses that fit: {fitting}, and any whose loss of a '
        "row is that row's own times its weight; or take mmdet's head of this name."
    )
