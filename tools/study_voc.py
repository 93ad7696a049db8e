"""Read a folder in Pascal VOC format: Annotations, JPEGImages and, with splits, ImageSets/Main."""

import xml.etree.ElementTree as ET
from pathlib import Path

from study_coco import Layout, describe, index_images, locate
from study_file import StudyError


def is_voc(folder: Path) -> bool:
    return any((folder / 'Annotations').glob('*.xml'))


def read_voc(folder: Path) -> Layout:
    """Read a VOC folder.

    Where trainval and test are listed, these are 'train' and 'val'; else train and val are. Difficult objects are
    'iscrowd': neither learnt nor missed.

    Raises:
        StudyError: If an annotation file cannot be read, or a split names what is not annotated.
    """
    index = index_images(folder)
    images, annotations, unusable, ids = [], [], [], {}
    for number, path in enumerate(sorted((folder / 'Annotations').glob('*.xml')), start=1):
        try:
            root = ET.parse(path).getroot()
            objects = [(_name(obj), _box(obj), int(obj.findtext('difficult') or 0)) for obj in root.iter('object')]
        except (ET.ParseError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(f'{folder.name}: {path.name} is no Pascal VOC annotation ({error}).') from error
        ids[path.stem] = None
        try:
            # The name of the annotation file is the image's; what is written inside is often of another place.
            place = locate(folder, index, [path.stem, root.findtext('filename') or ''])
            images.append(describe(folder, place, number))
        except StudyError as error:
            unusable.append(str(error))
            continue
        ids[path.stem] = number
        annotations += [dict(image_id=number, category=name, bbox=box, iscrowd=hard) for name, box, hard in objects]
    classes = sorted({annotation['category'] for annotation in annotations})
    lists = {path.stem: path.read_text().split('\n') for path in (folder / 'ImageSets' / 'Main').glob('*.txt')}
    pairs = (('trainval', 'test'), ('train', 'val'), ('train', 'test'))
    pair = next((pair for pair in pairs if all(name in lists for name in pair)), None)
    if pair is None:
        usable = sorted(number for number in ids.values() if number is not None)
        return Layout(images, annotations, dict(train=usable), classes, unusable)
    splits = {}
    for ours, name in zip(('train', 'val'), pair):
        listed = [image.strip() for image in lists[name] if image.strip()]
        unknown = [image for image in listed if image not in ids]
        if unknown:
            raise StudyError(f'{folder.name}: ImageSets/Main/{name}.txt names {unknown[0]!r}, which has no annotation.')
        splits[ours] = sorted({ids[image] for image in listed if ids[image] is not None})
    return Layout(images, annotations, splits, classes, unusable)


def _name(obj: ET.Element) -> str:
    name = (obj.findtext('name') or '').strip()
    if not name:
        raise ValueError('an object has no name')
    return name


def _box(obj: ET.Element) -> list[float]:
    """x, y, width, height of an object; VOC counts pixels from 1, as mmdet's XMLDataset reads it."""
    left, top, right, bottom = (float(obj.find('bndbox').findtext(k)) - 1 for k in ('xmin', 'ymin', 'xmax', 'ymax'))
    return [left, top, right - left, bottom - top]
