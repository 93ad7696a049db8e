"""Ground truths of the images of a batch: their labels and masks checked, and padded to one number."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.ops import to_device_of


def as_labels(labels: Tensor, name: str = 'gt_instances.labels') -> Tensor:
    """Labels of any integer dtype as int64; an empty tensor may have any dtype, such as that of ``torch.zeros(0)``.

    Raises:
        TypeError: If there are labels and they are not integers.
    """
    if labels.numel() and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise TypeError(
            f'{name} must hold integers, numbers of classes, got {labels.dtype}: convert them with labels.long() where '
            'the data set or the pipeline makes them.'
        )
    return labels.long()


def class_labels(gt_instances: Sequence[InstanceData]) -> list[Tensor]:
    """Labels of each image (M_i,) as int64, from any integer dtype; without objects, from any dtype.

    Raises:
        TypeError: If labels are missing or are not integers.
        ValueError: If labels have a wrong shape.
    """
    found = []
    for index, gt in enumerate(gt_instances):
        labels = gt.get('labels')
        if isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.dim() == 1:
            found.append(labels)
            continue
        name = f'gt_instances.labels of image {index} of the batch'
        if not isinstance(labels, Tensor):
            raise TypeError(
                f'{name} must be a tensor of integers, got {"none" if labels is None else type(labels).__name__}; '
                f'gt_instances holds {sorted(gt.keys())}.'
            )
        if labels.dim() != 1 and labels.numel() != len(labels):
            raise ValueError(
                f'{name} must have shape ({len(gt)},), one class for each ground truth, got {tuple(labels.shape)}'
            )
        found.append(as_labels(labels, name).flatten())
    return found


def real_places(of_images: Sequence[Tensor], padded: Tensor) -> Tensor:
    """False on padding, (B, M); M is the second size of ``padded``."""
    places = torch.arange(padded.size(1), device=padded.device)
    return places < to_device_of(places, [len(values) for values in of_images])[:, None]


def pad(*fields: Sequence[Tensor]) -> list[Tensor]:
    """Pad and stack the fields of the images, (M_i, ...), to (B, M, ...); torch's pad_sequence pads one at a time."""
    real = real_places(fields[0], torch.empty(0, max(map(len, fields[0])), device=fields[0][0].device))
    padded = []
    for field in fields:
        values = torch.cat(list(field))
        mask = real.view(*real.shape, *[1] * (values.dim() - 1))
        padded.append(values.new_zeros(*real.shape, *values.shape[1:]).masked_scatter_(mask, values))
    return padded


def stack_masks(
    predictions: Any, gt_instances: Sequence[InstanceData], dtype: torch.dtype
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """Masks (B, N, P) and padded ground-truth masks (G, M, P) of stacked predictions; None twice where there are none.

    Args:
        predictions: A mapping with ``masks`` (B, N, ...), or anything else.
        gt_instances: Ground truths of G images, with ``masks`` (M_i, ...) of the same shape as a prediction's.
        dtype: Of the results.
    """
    masks = predictions.get('masks') if isinstance(predictions, Mapping) else None
    of_gts = [gt.get('masks') for gt in gt_instances]
    if not isinstance(masks, Tensor) or masks.dim() < 3 or not of_gts:
        return None, None
    if any(not isinstance(gt, Tensor) or gt.shape[1:] != masks.shape[2:] for gt in of_gts):
        return None, None
    (gt_masks,) = pad([gt.flatten(1).to(dtype) for gt in of_gts])
    return masks.detach().flatten(2).to(dtype), gt_masks
