"""Check that the annotations of the training set are those of the classes that the config names."""

import difflib
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Optional

from mmdet.datasets import CocoDataset, XMLDataset
from mmengine.fileio import get, get_text
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from uotod_mmdet.registry import HOOKS

NUM_XML_FILES = 300
"""XML files that are read for their class names, spread over the data set."""


class NoObjectsError(ValueError):
    """The training set holds nothing to learn."""


@HOOKS.register_module()
class DatasetFitHook(Hook):
    """Compare the classes of ``metainfo`` with those that are annotated, before training.

    mmdet leaves out annotations of classes that ``metainfo`` does not name. Where it was forgotten (CocoDataset then
    takes the 80 names of COCO), nothing is left, and the loss falls all the same. ``tools/train.py`` adds this hook.

    It warns of classes without any annotation beside annotated names that ``metainfo`` lacks (one is likely misspelt),
    of annotations that are left out, of names in another order than that of the annotation file, whose order
    CocoDataset takes for the labels, and of a head with more classes than the data set.

    Raises:
        ValueError: If no object is left, or the head has fewer classes than the data set; with what to write.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the data set of the training loop."""
        check_dataset(runner.train_dataloader.dataset, runner)


def check_dataset(dataset: Any, runner: Runner) -> None:
    """Check a data set, wrapped or not, as :class:`DatasetFitHook` says.

    Raises:
        NoObjectsError: If no object is left in it.
        ValueError: If the head of the model has fewer classes.
    """
    parts = list(_unwrapped(dataset))
    if not any(_has_object(part) for part in parts):
        raise NoObjectsError(' '.join(_why_empty(part) for part in parts))
    for part in parts:
        for warning in _misfits(part):
            runner.logger.warning(warning)
        _check_num_classes(part, runner)


def _unwrapped(dataset: Any) -> Iterator[Any]:
    """The data sets inside those that concatenate, repeat, balance or mix them."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _unwrapped(part)
    elif hasattr(dataset, 'dataset'):
        yield from _unwrapped(dataset.dataset)
    else:
        yield dataset


def _infos(dataset: Any) -> Iterator[dict]:
    """Annotations of each image of the data set."""
    return (dataset.get_data_info(index) for index in range(len(dataset)))


def _has_object(dataset: Any) -> bool:
    """Whether any image has an object that is not ignored; True where the data set does not say."""
    if not hasattr(dataset, 'get_data_info'):
        return True
    return any(
        'instances' not in info or any(not instance.get('ignore_flag') for instance in info['instances'])
        for info in _infos(dataset)
    )


def _classes(dataset: Any) -> list[str]:
    classes = dataset.metainfo.get('classes') or ()
    return [classes] if isinstance(classes, str) else list(classes)


def _place(dataset: Any) -> str:
    """The data set and its annotations, for a message."""
    file = getattr(dataset, 'ann_file', '')
    return f'{type(dataset).__name__}{f" ({file})" if file else ""}'


def _why_empty(dataset: Any) -> str:
    """A sentence or more on a data set without objects."""
    classes, counts = _classes(dataset), _annotated(dataset)
    start = f'The training set {_place(dataset)} holds no image with an object to learn'
    if counts is None:
        return f'{start}: of {len(dataset)} images all are empty or their objects are ignored.'
    if not +counts:
        return f'{start}: there is no annotation in it. Check ann_file and data_prefix of train_dataloader.dataset.'
    if any(counts[name] for name in classes):
        return (
            f'{start}, though {sum(counts[name] for name in classes)} annotations belong to classes of metainfo '
            f'({_listed(classes)}): all are marked as ignored, difficult or crowd, smaller than a pixel, outside the '
            'image, or left out by filter_cfg or indices. COCO boxes are (x, y, width, height) in pixels.'
        )
    names = list(+counts)
    written = f'({names[0]!r},)' if len(names) == 1 else f'({", ".join(map(repr, names))})'
    if len(names) > 20:
        written = f'({", ".join(map(repr, names[:3]))}, ...)'
    return (
        f'{start}: no annotation belongs to a class of metainfo. Classes of metainfo: {_listed(classes)}. '
        f'Annotated classes: {_listed(names)}. Write metainfo=dict(classes={written}) into dataset=dict(...) of '
        f'train_dataloader, val_dataloader and test_dataloader, and num_classes={len(names)} into the head.'
    )


def _misfits(dataset: Any) -> list[str]:
    """A sentence on each way in which the names of ``metainfo`` and those of the annotations differ."""
    classes = _classes(dataset)
    counts = _annotated(dataset) if classes else None
    if counts is None:
        return []
    missing = [name for name in classes if not counts[name]]
    left_out = [name for name in +counts if name not in classes]
    found = []
    if left_out and missing:
        close = {name: difflib.get_close_matches(name, left_out, n=1, cutoff=0.5) for name in missing}
        advice = [f'{name!r} may be meant to be {other[0]!r}' for name, other in close.items() if other]
        found.append(
            f'{_place(dataset)}: metainfo names classes that have no annotation, beside annotated classes that '
            f'metainfo lacks, so some may be misspelt{": " + "; ".join(advice) if advice else ""}. '
            f'Classes without annotation: {_listed(missing)}. Classes that metainfo lacks: {_listed(left_out)}.'
        )
    if left_out:
        at_least = 'at least ' if isinstance(dataset, XMLDataset) else ''
        found.append(
            f'{_place(dataset)}: {at_least}{sum(counts[name] for name in left_out)} annotations are left out, because '
            f'metainfo does not name their classes: {_listed(left_out)}. Classes of metainfo: {_listed(classes)}.'
        )
    if isinstance(dataset, CocoDataset):
        in_file = [name for name in counts if name in classes]
        if in_file != classes[: len(in_file)]:
            found.append(
                f'{_place(dataset)}: {type(dataset).__name__} numbers the classes that it finds in the order of the '
                f'annotation file: {_listed(in_file)}. metainfo names them {_listed(classes)}, so detections get the '
                'wrong names. Write the classes into metainfo as they are named and ordered in the file.'
            )
    return found


def _annotated(dataset: Any) -> Optional[Counter]:
    """How many annotations each class has, in the order of the file, 0 included; None where that is not known.

    For XML files, of the classes that ``metainfo`` lacks: how many in a sample of the files.
    """
    if isinstance(dataset, CocoDataset) and hasattr(dataset, 'cat_img_map'):
        categories = _coco_categories(dataset)
        counts: Counter = Counter()
        for category in categories or ():
            counts[category['name']] += len(dataset.cat_img_map.get(category['id'], ()))
        return counts if categories else None
    if isinstance(dataset, XMLDataset):
        classes = _classes(dataset)
        counts = Counter(dict.fromkeys(classes, 0))
        for info in _infos(dataset):
            counts.update(classes[instance['bbox_label']] for instance in info['instances'])
            if all(counts.values()):
                break
        step = max(1, len(dataset) // NUM_XML_FILES)
        for path in islice(_xml_paths(dataset), 0, None, step):
            root = ET.fromstring(get(path, backend_args=dataset.backend_args))
            counts.update(name for name in (obj.findtext('name') for obj in root.iter('object')) if name not in classes)
        return counts
    return None


def _xml_paths(dataset: XMLDataset) -> Iterator[str]:
    return (info['xml_path'] for info in _infos(dataset))


def _coco_categories(dataset: CocoDataset) -> Optional[list[dict]]:
    """The categories of the annotation file, without parsing the rest of it; None where they are not found."""
    text = get_text(dataset.ann_file, backend_args=dataset.backend_args)
    for place in re.finditer(r'"categories"\s*:\s*(?=\[)', text):
        categories, _ = json.JSONDecoder().raw_decode(text, place.end())
        if all(isinstance(category, dict) and {'id', 'name'} <= set(category) for category in categories):
            return categories
    return None


def _listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, and their number where there are many."""
    if not names:
        return 'none'
    shown = ', '.join(map(repr, names[:most]))
    return shown if len(names) <= most else f'{shown} and {len(names) - most} more ({len(names)} in all)'


def _check_num_classes(dataset: Any, runner: Runner) -> None:
    """Compare the number of classes with that of the heads; mmdet's NumClassCheckHook checks all modules."""
    classes = _classes(dataset)
    if not classes or getattr(dataset, 'return_classes', False):  # names that the model reads as text
        return
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for path, head in _box_heads(model):
        if head.num_classes == len(classes):
            continue
        advice = (
            f'num_classes={head.num_classes} of {path} ({type(head).__name__}), but metainfo of {_place(dataset)} '
            f'names {len(classes)} classes: {_listed(classes)}. Write num_classes={len(classes)} into {path} of the '
            'model.'
        )
        if head.num_classes < len(classes):
            raise ValueError(advice)
        runner.logger.warning(advice)


def _box_heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if re.search(r'(^|\.)bbox_head(\.\d+)?$', path) and isinstance(getattr(module, 'num_classes', None), int):
            yield path, module
