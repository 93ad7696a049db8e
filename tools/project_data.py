"""What is in a data folder, for tools/new_project.py: the boxes that can be learnt, and a table of what was found."""

import hashlib
import math
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from study_coco import Layout, image_size
from study_data import read_layout, split_folds
from study_file import StudyError

SHARE = 5
"""One image of so many validates, where the folder has no validation split."""
EXAMPLES = 3


class Problem(NamedTuple):
    """Something that the folder was checked for, what was done about it, and where it was found."""

    what: str
    done: str
    where: list[str]


class Data(NamedTuple):
    """A data folder, cleaned."""

    folder: Path
    format: str
    images: list[dict]
    annotations: list[dict]
    splits: dict[str, list[int]]  # ids of the images of 'train' and 'val'
    split_by: str  # how it came about, in words
    classes: list[str]  # those with boxes, in the order of the files
    problems: list[Problem]

    def boxes_of(self, split: str) -> list[dict]:
        """The annotations of a split."""
        ids = set(self.splits[split])
        return [annotation for annotation in self.annotations if annotation['image_id'] in ids]

    def relative_sides(self) -> list[np.ndarray]:
        """Square root of the area of each box that is learnt, in longer sides of its image, for each class."""
        longer = {image['id']: max(image['width'], image['height']) for image in self.images}
        sides: dict[str, list[float]] = {}
        for a in self.boxes_of('train'):
            if not a['iscrowd']:
                side = math.sqrt(a['bbox'][2] * a['bbox'][3]) / longer[a['image_id']]
                sides.setdefault(a['category'], []).append(side)
        return [np.array(values) for values in sides.values()]


def inspect(folder: Path) -> Data:
    """Read a folder, look at every image and box, and split it where it has no validation split.

    Raises:
        StudyError: If it cannot be understood (see :func:`study_data.read_layout`), or there is too little to train on.
    """
    name, found = read_layout(folder)
    images, unusable, copies, resized = _look_at_images(folder, found)
    annotations, problems = _look_at_boxes(images, found.annotations)
    if len(images) < 2:
        raise StudyError(
            f'{folder.name}: {"one image" if images else "no image"} can be used; training needs two at least, one to '
            f'learn from and one to validate on.{f" {unusable[0]}" if unusable else ""}'
        )
    if not any(not annotation['iscrowd'] for annotation in annotations):
        raise StudyError(f'{folder.name}: no annotation holds a box of at least one pixel; there is nothing to learn.')
    ids = {image['id'] for image in images}
    splits = {split: [number for number in numbers if number in ids] for split, numbers in found.splits.items()}
    split_by = 'as in the folder'
    if 'val' not in splits:
        splits = _split(images, annotations)
        split_by = f'the folder has none: one image of {min(SHARE, len(images))} by a checksum of its name'
    counts = Counter(annotation['category'] for annotation in annotations)
    names = {image['id']: image['file_name'] for image in images}
    train = set(splits['train'])
    both = [names[number] for number in splits['val'] if copies[number] & train]
    empty = ids - {annotation['image_id'] for annotation in annotations}
    problems = [
        Problem('images that do not open or are missing', 'left out', unusable),
        Problem('images whose size is not the one annotated', 'the real size counts', resized),
        Problem('images that are in train and val', 'check the split, AP is too high', both),
        Problem('images that are a copy of another', 'kept', [names[n] for n in names if copies[n] - {n}]),
        Problem('images without objects', 'kept as background', [names[number] for number in sorted(empty)]),
        *problems,
        Problem('classes without boxes', 'left out', [name for name in found.classes if not counts[name]]),
    ]
    data = Data(folder, name, images, annotations, splits, split_by, [n for n in found.classes if counts[n]], problems)
    for split in ('train', 'val'):
        if not any(not annotation['iscrowd'] for annotation in data.boxes_of(split)):
            raise StudyError(
                f'{folder.name}: no usable image of the split {split!r} holds an object; fill it, or remove '
                'its file or folder, and the images are split by chance.'
            )
    return data


def _look_at_images(folder: Path, found: Layout) -> tuple[list[dict], list[str], dict[int, set[int]], list[str]]:
    """Images that open, with their real size; what is said of the others; copies of each; those of another size."""

    def look(image: dict) -> tuple[dict, str]:
        path = folder / image['file_name']
        try:
            width, height = image_size(folder, path)
        except (StudyError, OSError) as error:
            return image, str(error)
        return dict(image, width=width, height=height, checksum=hashlib.md5(path.read_bytes()).hexdigest()), ''

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = list(pool.map(look, found.images))
    unusable = found.unusable + [error for _, error in looked if error]
    images = [image for image, error in looked if not error]
    before = {image['id']: (image['width'], image['height']) for image in found.images}
    resized = [i['file_name'] for i in images if before[i['id']] != (i['width'], i['height'])]
    same: dict[str, set[int]] = {}
    for image in images:
        same.setdefault(image['checksum'], set()).add(image['id'])
    copies = {image['id']: same[image.pop('checksum')] for image in images}
    return images, unusable, copies, resized


def _look_at_boxes(images: list[dict], annotations: list[dict]) -> tuple[list[dict], list[Problem]]:
    """The boxes that can be learnt, cut to their image, and what is wrong with the others."""
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    names = {image['id']: image['file_name'] for image in images}
    kept, seen = [], set()
    no_area, outside, cut, twice = ([] for _ in range(4))
    for annotation in annotations:
        number = annotation['image_id']
        if number not in sizes:
            continue
        left, top, width, height = annotation['bbox']
        if not (math.isfinite(left) and math.isfinite(top) and 1 <= width < math.inf and 1 <= height < math.inf):
            no_area.append(names[number])
            continue
        right, bottom = (min(edge, limit) for edge, limit in zip((left + width, top + height), sizes[number]))
        box = [max(left, 0), max(top, 0), right - max(left, 0), bottom - max(top, 0)]
        key = (number, annotation['category'], *(round(value, 1) for value in box))
        if box[2] < 1 or box[3] < 1:
            outside.append(names[number])
        elif key in seen:
            twice.append(names[number])
        else:
            seen.add(key)
            if max(abs(new - old) for new, old in zip(box, annotation['bbox'])) > 1:
                cut.append(names[number])
            if box != annotation['bbox']:
                annotation = {name: value for name, value in annotation.items() if name != 'area'} | dict(bbox=box)
            kept.append(annotation)
    return kept, [
        Problem('boxes without area', 'left out', no_area),
        Problem('boxes outside their image', 'left out', outside),
        Problem('boxes partly outside', 'cut to the image', cut),
        Problem('boxes that are there twice', 'one is kept', twice),
    ]


def _split(images: list[dict], annotations: list[dict]) -> dict[str, list[int]]:
    """A split that is the same on every machine; of the folds the one with most classes on both sides."""
    folds = split_folds(images, min(SHARE, len(images)))
    classes: dict[int, set[str]] = {image['id']: set() for image in images}
    for annotation in annotations:
        classes[annotation['image_id']].add(annotation['category'])

    def shared(fold: list[int]) -> int:
        sides = set(fold), set(classes) - set(fold)
        inside, outside = (set().union(*(classes[number] for number in side)) for side in sides)
        return len(inside & outside)

    val = max(folds, key=shared)
    return dict(train=sorted(set(classes) - set(val)), val=val)


def describe_data(data: Data) -> str:
    """The table of what was found."""
    sides = np.sqrt([a['bbox'][2] * a['bbox'][3] for a in data.annotations])
    widths, heights = ([image[key] for image in data.images] for key in ('width', 'height'))
    counts = {split: Counter(a['category'] for a in data.boxes_of(split)) for split in ('train', 'val')}
    rows = [('', 'train', 'val'), ('images', *(len(data.splits[split]) for split in counts))]
    rows.append(('boxes', *(sum(counts[split].values()) for split in counts)))
    rows += [(f'  {name}', *(counts[split][name] for split in counts)) for name in data.classes]
    small, middle, large = np.percentile(sides, (10, 50, 90))
    lines = [
        f'{data.folder.name}, {data.format} format: {len(data.images)} images, {len(data.annotations)} boxes, '
        f'{len(data.classes)} {"class" if len(data.classes) == 1 else "classes"}',
        f'Image sizes: {_range(widths)} x {_range(heights)} pixels. Split: {data.split_by}.',
        f'Box sides (square root of the area): {small:.0f} to {large:.0f} pixels for 10 to 90 %, median {middle:.0f}.',
        '',
        *_table(rows),
        '',
        'Looked for:',
    ]
    for what, done, where in data.problems:
        shown = ', '.join(where[:EXAMPLES]) + (', ...' if len(where) > EXAMPLES else '')
        lines.append(f'{len(where):7}  {what}{f" ({done}): {shown}" if where else ""}')
    unused = len({image['id'] for image in data.images} - set().union(*data.splits.values()))
    if unused:
        lines.append(f'{unused:7}  images in neither train nor val (not used; a test split, say)')
    missing = {split: [name for name in data.classes if not counts[split][name]] for split in counts}
    if missing['train']:
        lines.append(f'Not in train, so never detected: {", ".join(missing["train"])}.')
    if missing['val']:
        lines.append(f'Not in val, so without AP: {", ".join(missing["val"])}.')
    return '\n'.join(lines)


def _range(values: list[int]) -> str:
    return f'{min(values)}' if min(values) == max(values) else f'{min(values)}-{max(values)}'


def _table(rows: list[tuple]) -> list[str]:
    """Lines of a table whose first column is text of any script, the others numbers."""

    def width(text: str) -> int:
        return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)

    first = max(width(row[0]) for row in rows)
    return [row[0] + ' ' * (first - width(row[0])) + ''.join(f'{value:>8}' for value in row[1:]) for row in rows]
