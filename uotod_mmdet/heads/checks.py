"""Checks of the types and shapes of predictions and ground truths of our heads; these cost nothing."""

from collections.abc import Sequence
from typing import Any, Optional

from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import Batch
from uotod_mmdet.losses.checks import check_boxes

GT_BBOXES = 'batch_gt_instances.bboxes'


def check_floats(owner: str, name: str, values: Any, layout: str, shape: Sequence[Optional[int]]) -> None:
    """Check that ``values`` is a floating-point tensor of ``shape``.

    Args:
        owner: The head, for the message.
        name: The argument, for the message.
        values: Anything.
        layout: The shape in words.
        shape: Its sizes; None: any.

    Raises:
        TypeError: If ``values`` is not a floating-point tensor.
        ValueError: If the shape is wrong.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = f'{values.dtype}' if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f'{owner}: {name} must be a floating-point tensor {layout}, got {came}.')
    if values.dim() != len(shape) or any(size not in (None, found) for size, found in zip(shape, values.shape)):
        expected = ', '.join('any' if size is None else str(size) for size in shape)
        raise ValueError(
            f'{owner}: {name} must have shape {layout}, here ({expected}), got {tuple(values.shape)}. '
            "Check num_classes and the channels of the head, and that all of the head's outputs are of the same images."
        )


def check_images(
    owner: str,
    num_images: Optional[int],
    batch_gt_instances: Sequence[InstanceData],
    batch_img_metas: Sequence[dict],
    batch_gt_instances_ignore: Optional[Sequence[InstanceData]],
) -> None:
    """Check that there are images, and that each argument has as many as the predictions.

    Raises:
        ValueError: If not.
    """
    if not num_images:
        raise ValueError(f'{owner}: cls_scores hold no image; a batch needs at least one.')
    lists = dict(
        batch_gt_instances=batch_gt_instances,
        batch_img_metas=batch_img_metas,
        batch_gt_instances_ignore=batch_gt_instances_ignore,
    )
    for name, of_images in lists.items():
        if of_images is None and name == 'batch_gt_instances_ignore':
            continue
        if not isinstance(of_images, (list, tuple)) or len(of_images) != num_images:
            came = len(of_images) if isinstance(of_images, (list, tuple)) else f'a {type(of_images).__name__}'
            raise ValueError(
                f'{owner}: {name} must be a list of one entry for each of the {num_images} images of cls_scores, '
                f'got {came}.'
            )
    for index, meta in enumerate(batch_img_metas):
        if 'img_shape' not in meta:
            raise ValueError(
                f"{owner}: batch_img_metas[{index}] has no 'img_shape', which mmdet's PackDetInputs writes; it holds "
                f'{sorted(meta)}.'
            )


def check_gt_bboxes(owner: str, batch: Batch) -> Tensor:
    """Check that the ground truths have boxes.

    Returns:
        These, (B, M, 4).

    Raises:
        ValueError: If not.
    """
    if batch.gt_bboxes is None:
        found = [tuple(gt.bboxes.shape) if 'bboxes' in gt else 'none' for gt in batch.gt_instances]
        raise ValueError(f'{owner}: {GT_BBOXES} must have shape (M, 4) in each image, got {found}.')
    return batch.gt_bboxes


def check_gt_masks(owner: str, batch_gt_instances: Sequence[InstanceData], batch_img_metas: Sequence[dict]) -> None:
    """Check that the ground truths have masks of the size of the padded images.

    Raises:
        ValueError: If not.
    """
    size: Optional[tuple[int, ...]] = None
    of_what = 'the first image'
    for index, (gts, meta) in enumerate(zip(batch_gt_instances, batch_img_metas)):
        masks, name = gts.get('masks'), f'batch_gt_instances[{index}].masks'
        if not isinstance(masks, Tensor) or masks.dim() != 3 or len(masks) != len(gts.labels):
            came = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise ValueError(
                f'{owner}: {name} must be a tensor of shape (M, H, W) with one mask for each of the '
                f"{len(gts.labels)} labels, as the head's preprocess_gt makes it, got {came}."
            )
        if 'batch_input_shape' in meta:
            size, of_what = tuple(meta['batch_input_shape'][:2]), 'the padded images'
        height, width = size = size or tuple(masks.shape[1:])
        if masks.shape[1:] != size:
            raise ValueError(
                f'{owner}: {name} are of {masks.size(1)} x {masks.size(2)} pixels, but those of {of_what} are '
                f'{height} x {width}: pad masks as images are padded, with pad_mask=True in model.data_preprocessor '
                '(and in a BatchFixedSizePad of its batch_augments), and resize them in the pipeline as images are.'
            )


def check_pair_boxes(owner: str, gt_bboxes: Tensor, **pred: Tensor) -> None:
    """:func:`~uotod_mmdet.losses.checks.check_boxes` of predictions, by the argument's name, and ground truths."""
    check_boxes(owner, **pred, **{GT_BBOXES: gt_bboxes})
