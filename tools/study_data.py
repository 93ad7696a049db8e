"""Data sets of studies: a COCO, VOC or YOLO folder as COCO annotation files, with folds where the study has them."""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from study_coco import Layout, read_coco
from study_file import Run, StudyError
from study_voc import is_voc, read_voc
from study_yolo import is_yolo, read_yolo


class Annotated(NamedTuple):
    """A data set: what every format becomes.

    ``annotations`` are COCO's, with ``image_id``, ``category`` (a name), ``bbox`` (x, y, w, h) and ``iscrowd``;
    ``splits`` holds the ids of the images of 'train' and, if the folder has a validation split, of 'val'.
    """

    images: list[dict]
    annotations: list[dict]
    splits: dict[str, list[int]]
    dropped: int  # boxes of less than a pixel, left out


def find_folder(name: str) -> Path:
    """The folder of a study's data set, environment variables put in.

    Raises:
        StudyError: If a variable is not set, or there is no such folder.
    """
    path = Path(os.path.expandvars(name)).expanduser()
    missing = re.findall(r'\$\{?(\w+)', str(path))
    if missing:
        raise StudyError(f'folder {name!r}: set the environment variable {missing[0]} to the folder of the data set.')
    if not path.is_dir():
        raise StudyError(f'folder {name!r}: there is no folder {path}; give one in COCO, Pascal VOC or YOLO format.')
    return path.absolute()


def read_layout(folder: Path) -> tuple[str, Layout]:
    """The format of a folder, 'COCO', 'Pascal VOC' or 'YOLO', and all that it holds, unchecked.

    Raises:
        StudyError: If it is empty, in none of these formats, or its annotations cannot be understood.
    """
    if not any(folder.iterdir()):
        raise StudyError(f'{folder.name}: the folder is empty; give one in COCO, Pascal VOC or YOLO format.')
    for name, is_format, read in (('Pascal VOC', is_voc, read_voc), ('YOLO', is_yolo, read_yolo)):
        if is_format(folder):
            return name, read(folder)
    return 'COCO', read_coco(folder)


def read_folder(folder: Path) -> Annotated:
    """Read a folder in COCO, Pascal VOC or YOLO format; boxes without area are left out.

    Raises:
        StudyError: See :func:`read_layout`; or an image is missing or does not open, or a split is empty.
    """
    _, found = read_layout(folder)
    if found.unusable:
        raise StudyError(found.unusable[0])
    usable = [a for a in found.annotations if a['bbox'][2] >= 1 and a['bbox'][3] >= 1]
    if not usable:
        raise StudyError(f'{folder.name}: no annotation holds a box of at least one pixel; there is nothing to learn.')
    for split, ids in found.splits.items():
        if not ids:
            raise StudyError(f'{folder.name}: the split {split!r} holds no images; fill it, or remove its file.')
    return Annotated(found.images, usable, found.splits, len(found.annotations) - len(usable))


def split_folds(images: list[dict], folds: int, group: str | None = None) -> list[list[int]]:
    """Ids of the images of each fold: the same on every machine, and of sizes as equal as groups allow.

    Args:
        images: COCO's images.
        folds: Number of folds, at least 2.
        group: Regular expression; images in whose file names its first group (or all of it) is the same stay together.

    Raises:
        StudyError: If there are fewer groups than folds, or a name does not match.
    """
    groups: dict[str, list[int]] = {}
    for image in images:
        name = Path(image['file_name']).name
        match = re.search(group, name) if group else None
        if group and match is None:
            raise StudyError(f'group {group!r} matches nothing in the file name {name!r}.')
        key = match[match.re.groups and 1] if match else image['file_name']
        groups.setdefault(key, []).append(image['id'])
    if not 2 <= folds <= len(groups):
        raise StudyError(f'folds must be from 2 to {len(groups)}, the number of images or groups; got {folds}.')
    parts: list[list[int]] = [[] for _ in range(folds)]
    for key in sorted(groups, key=lambda key: hashlib.md5(key.encode()).hexdigest()):
        min(parts, key=len).extend(groups[key])
    return [sorted(part) for part in parts]


def write_files(data: dict, files: Path) -> tuple[str, str]:
    """Write the COCO annotation files of a data set's runs into the folder ``files``.

    Returns:
        A sentence on what is there, and a checksum of the files.

    Raises:
        StudyError: See :func:`find_folder`, :func:`read_folder` and :func:`split_folds`.
    """
    folder = find_folder(data['folder'])
    found = read_folder(folder)
    counts = Counter(annotation['category'] for annotation in found.annotations)
    names = sorted(counts)
    if data.get('folds'):
        parts = split_folds(found.images, data['folds'], data.get('group'))
        everything = sorted(image['id'] for image in found.images)
        splits = {}
        for fold, part in enumerate(parts):
            splits[f'fold{fold}_val'] = part
            splits[f'fold{fold}_train'] = sorted(set(everything) - set(part))
        how = f'{len(everything)} images in {data["folds"]} folds'
    elif 'val' not in found.splits:
        raise StudyError(f'{folder.name}: there is no validation split; give the data set folds=4 in the study file.')
    else:
        splits = found.splits
        how = f'{len(splits["train"])} images to train on, {len(splits["val"])} to validate'
    files.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for split, ids in splits.items():
        content = to_coco(found.images, found.annotations, ids, names)
        if split.endswith('val') and not content['annotations']:
            raise StudyError(f'{folder.name}: no image of the validation split {split!r} holds an object.')
        text = json.dumps(content)
        (files / f'{split}.json').write_text(text)
        digest.update(text.encode())
    classes = ', '.join(f'{name} ({counts[name]})' for name in names)
    dropped = f' {found.dropped} boxes of less than a pixel are left out.' if found.dropped else ''
    words = f'{len(names)} {"class" if len(names) == 1 else "classes"}: {classes}'
    return f'{folder.name}: {how}, {words}.{dropped}', digest.hexdigest()[:12]


def to_coco(images: list[dict], annotations: list[dict], ids: list[int], names: list[str]) -> dict[str, Any]:
    """The content of a COCO annotation file of the images with these ids; classes in the order of ``names``."""
    chosen = set(ids)
    kept: list[dict] = []
    for annotation in annotations:
        if annotation['image_id'] in chosen:
            box = annotation['bbox']
            kept.append(
                dict(
                    id=len(kept) + 1,  # pycocotools takes 0 for 'no match'
                    image_id=annotation['image_id'],
                    category_id=names.index(annotation['category']) + 1,
                    bbox=box,
                    area=annotation.get('area', box[2] * box[3]),
                    iscrowd=annotation['iscrowd'],
                )
            )
    return dict(
        images=[image for image in images if image['id'] in chosen],
        annotations=kept,
        categories=[dict(id=index, name=name) for index, name in enumerate(names, start=1)],
    )


def use_folder(cfg: Config, data: dict, run: Run, files: Path) -> None:
    """Let a config train and validate on the files that :func:`write_files` wrote, with the classes they name."""
    folder = find_folder(data['folder'])
    prefix = '' if run.fold is None else f'fold{run.fold}_'
    train, val = (files / f'{prefix}{split}.json' for split in ('train', 'val'))
    classes = [category['name'] for category in json.loads(train.read_text())['categories']]
    for loader, ann_file in ((cfg.train_dataloader, train), (cfg.val_dataloader, val)):
        inner = loader
        while 'dataset' in inner.dataset:  # of a data set around another one
            inner = inner.dataset
        inner.dataset = dict(
            type='CocoDataset',
            ann_file=str(ann_file),
            data_prefix=dict(img=f'{folder}/'),
            metainfo=dict(classes=classes),
            test_mode=ann_file is val,
            pipeline=inner.dataset.pipeline,
        )
        if 'img_scale' in data:
            for step in inner.dataset.pipeline:
                if step.type == 'Resize' and step.get('keep_ratio'):  # a model of one size keeps it
                    step.scale = tuple(data['img_scale'])
    cfg.train_dataloader.batch_size = data.get('batch_size', cfg.train_dataloader.batch_size)
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=str(val), metric='bbox')
    if not _set_num_classes(cfg.model, len(classes)):
        cfg.model.bbox_head.num_classes = len(classes)


def _set_num_classes(value: Any, count: int) -> bool:
    """Set ``num_classes`` wherever a part of the model but the backbone has it; whether any has."""
    if isinstance(value, (list, tuple)):
        return any([_set_num_classes(item, count) for item in value])
    if not isinstance(value, dict):
        return False
    found = 'num_classes' in value
    if found:
        value['num_classes'] = count
    return any([_set_num_classes(item, count) for key, item in value.items() if key != 'backbone']) or found
