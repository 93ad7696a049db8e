"""Boxes as tensors, from tensors or mmdet's box types."""

from functools import reduce
from typing import Union

import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmengine.structures import InstanceData
from torch import Tensor


def as_tensor(boxes: Union[Tensor, BaseBoxes]) -> Tensor:
    """Boxes as a tensor, (..., 4) xyxy pixels if they come as one of mmdet's box types; a tensor as it is.

    Raises:
        AssertionError: If mmdet cannot convert that box type to (x1, y1, x2, y2).
    """
    if isinstance(boxes, BaseBoxes):
        return boxes.tensor if isinstance(boxes, HorizontalBoxes) else boxes.convert_to('hbox').tensor
    return boxes


def ignored_boxes(gt_instances_ignore: InstanceData) -> Tensor:
    """Ignored (crowd) boxes of an image, (I, 4) pixels.

    Raises:
        ValueError: If there are no boxes, or their shape is wrong.
    """
    boxes = as_tensor(gt_instances_ignore.get('bboxes'))
    if not isinstance(boxes, Tensor) or boxes.shape[1:] != (4,):
        came = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f'gt_instances_ignore.bboxes must be a tensor of shape (I, 4), pixels, got {came}.')
    return boxes


def float_boxes(*boxes: Union[Tensor, BaseBoxes]) -> list[Tensor]:
    """Boxes as tensors of the widest dtype among them, at least float32, so that no area overflows."""
    tensors = [as_tensor(values) for values in boxes]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]
