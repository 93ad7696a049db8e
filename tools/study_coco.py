"""Read a folder in COCO format: annotation files of the splits, and images anywhere below it."""

import json
from pathlib import Path

import cv2
from study_file import StudyError

SPLITS = ('train', 'val', 'test')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def read_coco(folder: Path) -> tuple[list[dict], list[dict], dict[str, list[int]]]:
    """Images, annotations and splits of a COCO folder.

    The files are ``train.json`` and ``val.json``, or what is named like these in the folder or one below it
    (``annotations/instances_train2017.json``, ``train/_annotations.coco.json``); without val, test is. A single file
    of another name holds all images.

    Raises:
        StudyError: If there is no annotation file, several fit one split, or an image is missing.
    """
    files = _annotation_files(folder)
    index = index_images(folder)
    images, annotations, splits = [], [], {}
    for split, (path, content) in files.items():
        part = _split_of(folder, path)
        names = {category['id']: category['name'] for category in content['categories']}
        ids: dict = {}
        for image in content['images']:
            number = ids[image['id']] = len(images) + 1
            place = locate(folder, index, [image['file_name']], part)
            images.append(describe(folder, place, number, image.get('width'), image.get('height')))
        for annotation in content['annotations']:
            if annotation['image_id'] not in ids or annotation['category_id'] not in names:
                raise StudyError(
                    f'{path.name}: annotation {annotation.get("id")} is of an image or a category that is not listed.'
                )
            box = [float(value) for value in annotation['bbox']]
            kept = dict(area=float(annotation['area'])) if annotation.get('area') else {}
            annotations.append(
                dict(
                    image_id=ids[annotation['image_id']],
                    category=names[annotation['category_id']],
                    bbox=box,
                    iscrowd=int(annotation.get('iscrowd', 0)),
                    **kept,
                )
            )
        splits[split] = sorted(ids.values())
    return images, annotations, splits


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
        if boxes and all('bbox' in annotation for annotation in content['annotations']):
            found.setdefault(_split_of(folder, path) or 'train', []).append((path, content))
    if 'val' not in found and 'test' in found:
        found['val'] = found['test']
    if 'train' not in found:
        raise StudyError(
            f'{folder.name}: there are no annotations: neither Annotations/*.xml (Pascal VOC) nor a train.json, '
            'annotations/*.json or instances_*.json (COCO) with images, annotations and categories.'
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
        image = cv2.imread(str(path))
        if image is None:
            raise StudyError(f'{folder.name}: the image {path.name!r} cannot be read.')
        height, width = image.shape[:2]
    return dict(id=number, file_name=str(path.relative_to(folder)), width=width, height=height)
