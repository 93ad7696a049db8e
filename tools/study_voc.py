"""Read a folder in Pascal VOC format: Annotations, JPEGImages and, with splits, ImageSets/Main."""

import xml.etree.ElementTree as ET
from pathlib import Path

from study_coco import describe, index_images, locate
from study_file import StudyError


def is_voc(folder: Path) -> bool:
    return any((folder / 'Annotations').glob('*.xml'))


def read_voc(folder: Path) -> tuple[list[dict], list[dict], dict[str, list[int]]]:
    """Images, annotations and splits of a VOC folder.

    Where trainval and test are listed, these are 'train' and 'val'; else train and val are. Difficult objects are
    'iscrowd': neither learnt nor missed.

    Raises:
        StudyError: If a file cannot be read, an image is missing, or a split names what is not annotated.
    """
    index = index_images(folder)
    images, annotations, ids = [], [], {}
    for number, path in enumerate(sorted((folder / 'Annotations').glob('*.xml')), start=1):
        try:
            root = ET.parse(path).getroot()
            objects = [
                (obj.findtext('name'), _box(obj), int(obj.findtext('difficult') or 0)) for obj in root.iter('object')
            ]
        except (ET.ParseError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(f'{folder.name}: {path.name} is no Pascal VOC annotation ({error}).') from error
        # The name of the annotation file is the image's; what is written inside is often of another place.
        images.append(describe(folder, locate(folder, index, [path.stem, root.findtext('filename') or '']), number))
        ids[path.stem] = number
        annotations += [dict(image_id=number, category=name, bbox=box, iscrowd=hard) for name, box, hard in objects]
    lists = {path.stem: path.read_text().split() for path in (folder / 'ImageSets' / 'Main').glob('*.txt')}
    pairs = (('trainval', 'test'), ('train', 'val'), ('train', 'test'))
    pair = next((pair for pair in pairs if all(name in lists for name in pair)), None)
    if pair is None:
        return images, annotations, dict(train=sorted(ids.values()))
    splits = {}
    for ours, name in zip(('train', 'val'), pair):
        unknown = [image for image in lists[name] if image not in ids]
        if unknown:
            raise StudyError(f'{folder.name}: ImageSets/Main/{name}.txt names {unknown[0]!r}, which has no annotation.')
        splits[ours] = sorted(ids[image] for image in lists[name])
    return images, annotations, splits


def _box(obj: ET.Element) -> list[float]:
    """x, y, width, height of an object; VOC counts pixels from 1, as mmdet's XMLDataset reads it."""
    left, top, right, bottom = (float(obj.find('bndbox').findtext(k)) - 1 for k in ('xmin', 'ymin', 'xmax', 'ymax'))
    return [left, top, right - left, bottom - top]
