"""Read a folder in COCO format: annotation files of the splits, and images anywhere below it."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from study_file import StudyError

SPLITS = ('train', 'val', 'test')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


class Layout(NamedTuple):
    """What a folder holds, as every format becomes; see :class:`study_data.Annotated`."""

    images: list[dict]
    annotations: list[dict]
    splits: dict[str, list[int]]
    classes: list[str]  # in the order of the files; of some there may be no box
    unusable: list[str]  # a sentence on each image that is left out, with its annotations


def read_coco(folder: Path) -> Layout:
    """Read a COCO folder.

    The files are ``train.json`` and ``val.json``, or what is named like these in the folder or one below it
    (``annotations/instances_train2017.json``, ``train/_annotations.coco.json``); without val, test is. A single file
    of another name holds all images.

    Raises:
        StudyError: If there is no annotation file, several fit one split, or one cannot be understood.
    """
    files = _annotation_files(folder)
    index = index_images(folder)
    found = Layout([], [], {}, [], [])
    for split, (path, content) in files.items():
        before = len(found.images)
        try:
            _read_file(folder, path, content, index, found)
        except (KeyError, TypeError, ValueError) as error:
            what = f'{error} is missing' if isinstance(error, KeyError) else str(error)
            raise StudyError(
                f'{folder.name}: {path.name} is no COCO annotation file ({what}). An image has id and file_name; an '
                'annotation image_id, category_id and bbox, four numbers in pixels: x, y, width, height.'
            ) from error
        found.splits[split] = [image['id'] for image in found.images[before:]]
    return found


def _read_file(folder: Path, path: Path, content: dict, index: dict[str, list[Path]], found: Layout) -> None:
    """Append what an annotation file holds to ``found``."""
    names = {category['id']: str(category['name']) for category in content['categories']}
    found.classes.extend(names[key] for key in names if names[key] not in found.classes)
    ids: dict = {}
    split = _split_of(folder, path)
    for image in content['images']:
        number = len(found.images) + len(found.unusable) + 1
        ids[image['id']] = None
        try:
            place = locate(folder, index, [image['file_name']], split)
            described = describe(folder, place, number, image.get('width'), image.get('height'))
        except StudyError as error:
            found.unusable.append(str(error))
            continue
        found.images.append(described)
        ids[image['id']] = number
    for annotation in content['annotations']:
        if annotation['image_id'] not in ids or annotation['category_id'] not in names:
            raise StudyError(
                f'{path.name}: annotation {annotation.get("id")} is of an image or a category that is not listed.'
            )
        left, top, width, height = (float(value) for value in annotation['bbox'])
        kept = dict(area=float(annotation['area'])) if annotation.get('area') else {}
        if ids[annotation['image_id']] is not None:
            found.annotations.append(
                dict(
                    image_id=ids[annotation['image_id']],
                    category=names[annotation['category_id']],
                    bbox=[left, top, width, height],
                    iscrowd=int(annotation.get('iscrowd', 0)),
                    **kept,
                )
            )


def _annotation_files(folder: Path) -> dict[str, tuple[Path, dict]]:
    """The annotation file of each split, 'train' and maybe 'val'."""
    found: dict[str, list[tuple[Path, dict]]] = {}
    for path in sorted([*folder.glob('*.json'), *folder.glob('*/*.json')]):
        try:
            content = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise StudyError(f'{folder.name}: {path.name} is no JSON ({error}).') from error
        keys = ('images', 'annotations', 'categories')
        boxes = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)
        if boxes and all(isinstance(part, dict) and 'bbox' in part for part in content['annotations']):
            found.setdefault(_split_of(folder, path) or 'train', []).append((path, content))
    if 'val' not in found and 'test' in found:
        found['val'] = found['test']
    if 'train' not in found:
        raise StudyError(
            f'{folder.name}: there are no annotations: neither Annotations/*.xml (Pascal VOC) nor labels/*.txt (YOLO) '
            'nor a train.json, annotations/*.json or instances_*.json (COCO) with images, annotations and categories.'
        )
    chosen = {}
    for split in ('train', 'val'):
        files = found.get(split, [])
        files = [file for file in files if 'instances' in file[0].name] or files
        if len(files) > 1:
            names = ', '.join(str(path.relative_to(folder)) for path, _ in files)
            raise StudyError(f'{folder.name}: several files could be the split {split!r} ({names}); keep one.')
        if files:
            chosen[split] = files[0]
    return chosen


def _split_of(folder: Path, path: Path) -> str:
    """The split that the path below ``folder`` names, or ''."""
    name = str(path.relative_to(folder)).lower()
    return next((split for split in SPLITS if split in name), '')


def index_images(folder: Path) -> dict[str, list[Path]]:
    """All images below the folder, by their names with and without suffix."""
    index: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob('*')):
        if path.suffix.lower() in SUFFIXES:
            for name in (path.name, path.stem):
                index.setdefault(name, []).append(path)
    return index


def locate(folder: Path, index: dict[str, list[Path]], names: list[str], split: str = '') -> Path:
    """Where the image is that has the first of the names that any has; where several have it, the one of the split.

    Raises:
        StudyError: If it is not there, or there are several.
    """
    found = [folder / name for name in names if name and (folder / name).is_file()]
    if not found:
        found = next((index[Path(name).name] for name in names if Path(name).name in index), [])
    if len(found) > 1:
        found = [path for path in found if split and _split_of(folder, path) == split] or found
    if len(found) != 1:
        many = f'is there {len(found)} times' if found else 'is not there'
        raise StudyError(f'{folder.name}: the image {names[0]!r} {many}; each image must be there once, by its name.')
    return found[0]


def describe(folder: Path, path: Path, number: int, width: int | None = None, height: int | None = None) -> dict:
    """An image as COCO describes it, its file name below ``folder``; its size is read from it where not given.

    Raises:
        StudyError: If it cannot be read.
    """
    if not (width and height):
        width, height = image_size(folder, path)
    return dict(id=number, file_name=str(path.relative_to(folder)), width=width, height=height)


def image_size(folder: Path, path: Path) -> tuple[int, int]:
    """Width and height of an image as mmdet reads it.

    Raises:
        StudyError: If it cannot be read.
    """
    content = np.fromfile(path, np.uint8)  # cv2.imread does not take every name on every system
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise StudyError(f'{folder.name}: the image {path.name!r} cannot be read.')
    return image.shape[1], image.shape[0]
