"""Checks of the inputs of a matching beside its costs: masks, and masses of ground truths."""

from typing import Optional, Union

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.ops import act_if


def checked_mask(name: str, mask: Optional[Tensor], cost: Tensor, shape: tuple[int, int]) -> Tensor:
    """``mask``, checked, or all True."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=cost.device)
    found = f'{mask.dtype} of shape {tuple(mask.shape)}' if isinstance(mask, Tensor) else type(mask).__name__
    if not isinstance(mask, Tensor) or mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(
            f'{name} must be bool of shape {shape} for a cost of shape {tuple(cost.shape)}, got {found}; '
            'mask.bool() and mask.expand(...) make one of others.'
        )
    if mask.device != cost.device:
        raise ValueError(f'{name} must be on the device of the cost, {cost.device}, got {mask.device}')
    return mask


def checked_mass(mass: Union[float, Tensor], cost: Tensor, gt_mask: Tensor) -> Tensor:
    """Mass of each ground truth (B, M), checked, 0 on padding, in the dtype of the cost."""
    if not isinstance(mass, Tensor):
        mass = torch.full(gt_mask.shape, number('gt_mass', mass, at_least=0), dtype=cost.dtype, device=cost.device)
    if not mass.dim():
        mass = mass.expand(gt_mask.shape)
    if mass.shape != gt_mask.shape or mass.is_complex() or mass.device != cost.device:
        raise ValueError(
            f'gt_mass must hold one number for each ground truth, {tuple(gt_mask.shape)}, on {cost.device}, got '
            f'{mass.dtype} of shape {tuple(mass.shape)} on {mass.device}'
        )
    mass = torch.where(gt_mask, mass.detach().to(cost.dtype), 0)

    def complain() -> None:
        bad = (~(mass.isfinite() & (mass >= 0))).nonzero()
        image, gt = bad[0].tolist()
        raise ValueError(
            f'gt_mass must be finite and >= 0, got {mass[image, gt].item()} for ground truth {gt} of image {image} '
            f'({len(bad)} such in all)'
        )

    act_if(~(mass.isfinite() & (mass >= 0)).all(), complain)
    return mass


def gives_probabilities(predictions: InstanceData) -> bool:
    """Whether predictions look like those of mmdet's YOLOXHead: points with strides, and scores in [0, 1]."""
    priors, scores = predictions.get('priors'), predictions.get('scores')
    if not isinstance(priors, Tensor) or not isinstance(scores, Tensor) or not scores.is_floating_point():
        return False
    if priors.shape[1:] != (4,) or len(priors) < 2 or not scores.numel():
        return False
    return bool((priors[:, 2] == priors[:, 3]).all() & (scores >= 0).all() & (scores <= 1).all())
