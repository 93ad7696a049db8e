"""Read a folder in YOLO format: images, and for each a text file of its boxes in shares of the image."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from study_coco import SUFFIXES, Layout, describe
from study_file import StudyError

SPLITS = dict(
    train=('train', 'training', 'train2017'),
    val=('val', 'valid', 'validation', 'val2017'),
    test=('test', 'testing', 'test2017'),
)
MARGIN = 0.01
"""How far a share may lie outside [0, 1], by rounding."""


def is_yolo(folder: Path) -> bool:
    return any(any(labels.rglob('*.txt')) for labels in _label_folders(folder))


def _label_folders(folder: Path) -> Iterator[Path]:
    return (path for path in (*folder.glob('labels'), *folder.glob('*/labels')) if path.is_dir())


def read_yolo(folder: Path) -> Layout:
    """Read a YOLO folder: ``images/**`` beside ``labels/**``, maybe below ``train``, ``val`` and ``test``.

    The splits are those that the folders above the images name, or the lists ``train.txt`` and ``val.txt``; without
    val, test is. The names of the classes are those of a ``*.yaml`` with ``names``, ``classes.txt`` or ``obj.names``;
    else the classes are 'class 0', 'class 1'... An image without a label file has no objects. A polygon counts as its
    box.

    Raises:
        StudyError: If there are no images, or a line is no box in shares of the image, or of a class without a name.
    """
    names = _class_names(folder)
    lists = {split: _listed(folder, split) for split in ('train', 'val', 'test')}
    images, annotations, unusable = [], [], []
    ids: dict[str, list[int]] = dict(train=[], val=[], test=[])
    largest = -1
    files = _image_files(folder)
    if not files:
        raise StudyError(
            f'{folder.name}: there are labels of YOLO, but no images in a folder named images, beside labels and built '
            'like it.'
        )
    expected = {_label_file(folder, path) for path in files}
    for label in sorted(label for labels in _label_folders(folder) for label in labels.rglob('*.txt')):
        if label not in expected and label.name != 'classes.txt':
            unusable.append(f'{folder.name}: {label.relative_to(folder)} has no image.')
    for number, path in enumerate(files, start=1):
        try:
            image = describe(folder, path, number)
        except StudyError as error:
            unusable.append(str(error))
            continue
        images.append(image)
        split = next((split for split, listed in lists.items() if path in listed), None) or _split_of(folder, path)
        ids[split].append(number)
        for label, box in _boxes(folder, _label_file(folder, path), names):
            largest = max(largest, label)
            left, top, right, bottom = (value * size for value, size in zip(box, (image['width'], image['height']) * 2))
            box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
            category = names[label] if names else f'class {label}'
            annotations.append(dict(image_id=number, category=category, bbox=box, iscrowd=0))
    splits = dict(train=ids['train'] or sum(ids.values(), []))
    if ids['train'] and (ids['val'] or ids['test']):
        splits['val'] = ids['val'] or ids['test']
    return Layout(images, annotations, splits, names or [f'class {label}' for label in range(largest + 1)], unusable)


def _image_files(folder: Path) -> list[Path]:
    """All images below a folder named images."""
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in SUFFIXES and 'images' in path.relative_to(folder).parts[:-1]
    )


def _label_file(folder: Path, image: Path) -> Path:
    parts = list(image.relative_to(folder).with_suffix('.txt').parts)
    place = len(parts) - 1 - parts[::-1].index('images')
    return folder.joinpath(*parts[:place], 'labels', *parts[place + 1 :])


def _split_of(folder: Path, image: Path) -> str:
    """The split that a folder above the image names; 'train' where none does."""
    parts = [part.lower() for part in image.relative_to(folder).parts[:-1]]
    return next((split for split, names in SPLITS.items() if any(part in names for part in parts)), 'train')


def _listed(folder: Path, split: str) -> set[Path]:
    """The images that ``train.txt`` and the like name, by paths below or beside the folder."""
    file = folder / f'{split}.txt'
    if not file.is_file():
        return set()
    names = [line.strip() for line in _text(folder, file).splitlines() if line.strip()]
    return {folder / name.removeprefix('./') for name in names} | {Path(name) for name in names}


def _text(folder: Path, file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise StudyError(f'{folder.name}: {file.relative_to(folder)} is no text in UTF-8 ({error}).') from error


def _class_names(folder: Path) -> list[str]:
    """Names of the classes in the order of their numbers, or none."""
    for file in sorted([*folder.glob('*.yaml'), *folder.glob('*.yml')]):
        try:
            content = yaml.safe_load(_text(folder, file))
        except yaml.YAMLError as error:
            raise StudyError(f'{folder.name}: {file.name} is no YAML ({error}).') from error
        names = content.get('names') if isinstance(content, dict) else None
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[index] for index in range(len(names))]
        if isinstance(names, dict):
            raise StudyError(
                f'{folder.name}: names of {file.name} must number the classes 0 to {len(names) - 1}, as the labels do; '
                f'got {", ".join(map(str, names))}.'
            )
        if names:
            return [str(name) for name in names]
    for file in (folder / 'classes.txt', folder / 'labels' / 'classes.txt', *sorted(folder.glob('*.names'))):
        if file.is_file():
            return [line.strip() for line in _text(folder, file).splitlines() if line.strip()]
    return []


def _boxes(folder: Path, file: Path, names: list[str]) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Class and left, top, right, bottom, in shares of the image, of each line of a label file."""
    lines = _text(folder, file).splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        where = f'{folder.name}: {file.relative_to(folder)}, line {number}'
        words = line.split()
        if not words:
            continue
        try:
            label, *values = (float(word) for word in words)
        except ValueError:
            values = []
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise StudyError(
                f'{where}: {line.strip()!r} is no box; a line is: number of the class, x and y of the centre, width, '
                'height, the last four in shares of the image.'
            )
        if not label.is_integer() or not 0 <= label < (len(names) or float('inf')):
            known = f'from 0 to {len(names) - 1}, for {", ".join(names)}' if names else 'a whole number from 0'
            raise StudyError(f'{where}: the number of the class must be {known}; got {words[0]}.')
        if not all(-MARGIN <= value <= 1 + MARGIN for value in values):
            raise StudyError(
                f'{where}: {" ".join(words[1:])} are no shares of the image, from 0 to 1. Are these pixels? Divide x '
                'and width by the width of the image, y and height by its height.'
            )
        if len(values) == 4:
            x, y, width, height = values
            yield int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            yield int(label), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
