"""Training images as they always look the same: loaded and resized as in testing, with their ground truths."""

import difflib
import os
from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.config import Config
from mmengine.dataset import Compose

KEPT = ('FilterAnnotations', 'FixScaleResize', 'FixShapeResize', 'Normalize', 'Pad', 'Resize', 'ResizeShortestEdge')
"""Transforms of a training pipeline that are not random, beside those whose names begin with Load or Pack."""


def plain_pipeline(cfg: Union[Config, dict]) -> list[dict]:
    """The pipeline of the training images without anything random.

    Loading of annotations and packing are those of ``train_dataloader``, everything else is that of ``val_dataloader``
    (or of ``test_dataloader``), in this order, so that boxes are resized with their image::

        [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),  # training's
            dict(type='Resize', scale=(1333, 800), keep_ratio=True),
            dict(type='PackDetInputs'),  # training's
        ]

    Without either of these the training pipeline is taken, with only those transforms that load, resize, pad, filter
    and pack: see ``KEPT``.

    Args:
        cfg: Config of the training.
    """
    train = _transforms(cfg['train_dataloader']['dataset'])
    for name in ('val_dataloader', 'test_dataloader'):
        test = _transforms((cfg.get(name) or {}).get('dataset') or {})
        if test:
            break
    else:
        return [step for step in train if _name(step) in KEPT or _name(step).startswith(('Load', 'Pack'))]

    def is_annotations(step: dict) -> bool:
        return _name(step).startswith('Load') and 'Annotations' in _name(step)

    load = [step for step in test if _name(step).startswith('Load') and not is_annotations(step)]
    change = [step for step in test if not _name(step).startswith(('Load', 'Pack'))]
    annotations = [step for step in train if is_annotations(step)] or [dict(type='LoadAnnotations', with_bbox=True)]
    pack = [step for step in [*train, *test] if _name(step).startswith('Pack')][:1] or [dict(type='PackDetInputs')]
    return [*load, *annotations, *change, *pack]


def fixed_items(dataset: Any, images: Sequence[Union[int, str]], pipeline: Sequence[dict]) -> list[dict]:
    """Chosen images of a data set, packed by a pipeline of one's own::

        items = fixed_items(runner.train_dataloader.dataset, [0, '000139.jpg'], plain_pipeline(runner.cfg))

    Args:
        dataset: A data set of mmdet's, or wrappers around one (RepeatDataset, MultiImageMixDataset, ...).
        images: For each image its index in the data set, or its file name or id as a text.
        pipeline: Configs of transforms; see :func:`plain_pipeline`.

    Returns:
        For each image ``inputs``, (3, H, W), and ``data_samples`` with ``gt_instances``, in the order of ``images``.

    Raises:
        TypeError: If ``images`` is not a list of numbers and texts.
        ValueError: If the data set does not have one of them, or the pipeline drops it.
    """
    if isinstance(images, (str, int)) or not all(isinstance(image, (int, str)) for image in images):
        raise TypeError(f"images must be a list of indices or file names, such as [0, '000139.jpg'], got {images!r}")
    transforms, items = Compose(list(pipeline)), []
    for image, index in zip(images, _places(dataset, images)):
        item = transforms(dataset.get_data_info(index))
        if item is None:
            raise ValueError(f'images: the pipeline drops image {image!r}; choose an image with objects.')
        items.append(item)
    return items


def file_of(item: dict) -> str:
    """File name of an image of :func:`fixed_items`, without folders; its id where there is none."""
    sample = item['data_samples']
    return os.path.basename(sample.get('img_path') or '') or str(sample.get('img_id', ''))


def _places(dataset: Any, images: Sequence[Union[int, str]]) -> list[int]:
    """Index of each image in the data set."""
    for image in images:
        if isinstance(image, int) and not 0 <= image < len(dataset):
            raise ValueError(
                f'images: {image} is not in the data set: {type(dataset).__name__} has {len(dataset)} images, so that '
                f'indices are 0 to {len(dataset) - 1}.'
            )
    if not any(isinstance(image, str) for image in images):
        return [int(image) for image in images]
    by_name: dict[str, int] = {}
    files = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        file = os.path.basename(info.get('img_path') or '')
        files.append(file)
        for name in (file, str(info.get('img_path')), str(info.get('img_id'))):
            by_name.setdefault(name, index)
    for image in images:
        if isinstance(image, str) and image not in by_name:
            close = difflib.get_close_matches(image, files, 1)
            meant = f'; did you mean {close[0]!r}' if close else ''
            raise ValueError(
                f'images: {image!r} is neither a file name nor an image id of {type(dataset).__name__} with '
                f'{len(dataset)} images, such as {files[0]!r}{meant}. Images without objects may be left out of a '
                'training set by its filter_cfg.'
            )
    return [by_name[image] if isinstance(image, str) else image for image in images]


def _transforms(dataset: dict) -> list[dict]:
    """Transforms of a config of a data set, those of the data sets within first."""
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    return [*(_transforms(inner) if inner else ()), *(dataset.get('pipeline') or ())]


def _name(step: Any) -> str:
    """Name of a transform's type, without scope."""
    kind: Optional[Any] = step.get('type') if isinstance(step, dict) else type(step)
    return str(getattr(kind, '__name__', kind)).split('.')[-1]
