"""Ground truths that are words of a text: which tokens each of them means."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from .batch import pad

FIELDS = ('positive_maps', 'text_token_mask')


def has_token_maps(gt_instances: Sequence[InstanceData]) -> bool:
    """Whether the ground truths are tokens of a text, as those of GroundingDINO."""
    return bool(gt_instances) and all(FIELDS[0] in gt for gt in gt_instances)


def token_maps(gt_instances: Sequence[InstanceData]) -> tuple[Tensor, Tensor]:
    """Stack the token maps of a batch.

    Args:
        gt_instances: For each image ``positive_maps`` (M_i, T), not 0 where a token means the ground truth, and
            ``text_token_mask`` (M_i, T') with T' <= T, whose rows are the same: True on the tokens of its text.

    Returns:
        The maps, 0 on padding, (B, M, T), and True on the tokens of each image's text, (B, T). An image without ground
        truths has no text here.

    Raises:
        ValueError: If a field is missing or has another shape.
    """
    maps, masks = [], []
    for index, gt in enumerate(gt_instances):
        found = [gt.get(name) for name in FIELDS]
        for name, value in zip(FIELDS, found):
            if not isinstance(value, Tensor) or value.dim() != 2 or len(value) != len(gt):
                came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f'gt_instances.{name} of image {index} of the batch must have shape ({len(gt)}, tokens), got '
                    f"{'none' if value is None else came}. mmdet's GroundingDINO writes it from the text prompt of "
                    "the image; a data set gives the prompt with return_classes=True and 'text' among the meta_keys of "
                    'PackDetInputs.'
                )
        positive, real = found
        maps.append(positive)
        masks.append(real[0].bool() if len(real) else real.new_zeros(real.size(1), dtype=torch.bool))
    widths = {positive.size(1) for positive in maps}
    if len(widths) > 1 or max(map(len, masks)) > max(widths):
        raise ValueError(
            f'gt_instances.positive_maps of a batch must have one number of tokens, no fewer than text_token_mask, got '
            f'{sorted(widths)} and text_token_mask of up to {max(map(len, masks))}.'
        )
    (width,) = widths
    return pad(maps)[0], torch.stack([F.pad(mask, (0, width - len(mask))) for mask in masks])
