"""Color Boxes: rotated rectangles on noisy grey, the class of each is its colour.

The synthetic data set of De Plaen et al., "Unbalanced Optimal Transport: A Unified Framework for Object Detection",
CVPR 2023.
"""

from __future__ import annotations

import colorsys
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from filelock import FileLock
from mmdet.datasets import CocoDataset
from tqdm import tqdm

from ..registry import DATASETS

VERSION = 2
"""Part of the folder's name. A change of what is drawn takes the next number, so that no older pictures are read."""

SIZES = {'full': (4800, 960), 'small': (1200, 200), 'mini': (16, 8)}
"""Images in (train, val); ``full`` is the paper's, ``mini`` is for tests."""

SPLITS = ('train', 'val')
WIDTH, HEIGHT = 500, 400
MAX_OBJECTS = 30
SIDE_RANGE = (12.0, 80.0)
MAX_IOU = 0.25
GREY = 127.5
NOISE_STD = 0.05 * 255
HUE_STEP = 18

CLASSES = tuple(f'hue{hue:03d}' for hue in range(0, 360, HUE_STEP))
PALETTE = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / 360, 1, 1)) for hue in range(0, 360, HUE_STEP)]

# Nearly all of a file is noise. The full set takes 1.0 GB this way, 1.3 GB at quality 95, and 2.7 GB as PNG. JPEG's
# rounding adds to the noise: its standard deviation is 13.5 to 15.0 by channel (13.1 to 13.8 at quality 95), where
# 12.75 was drawn. With the usual halved chroma (4:2:0) the channels would correlate by 0.4 to 0.8 at any quality.
_JPEG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 92),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    *(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
]
_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_CORNER_GRID = 16


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image of Color Boxes: the rectangles of :func:`draw_rectangles` on grey, and noise over all.

    The noise is Gaussian, of standard deviation 12.75, and independent on each channel of each pixel; the sum is cut to
    [0, 255].

    A pixel shows a rectangle if the pixel's centre lies inside it; pixel ``(row, column)`` covers
    ``[column, column + 1] x [row, row + 1]``, mmdet's convention.

    Args:
        rng: Source of all randomness.

    Returns:
        - image: (400, 500, 3) uint8, BGR.
        - boxes, labels, polygons: see :func:`draw_rectangles`.
    """
    boxes, labels, polygons = draw_rectangles(rng)
    image = np.full((HEIGHT, WIDTH, 3), GREY, dtype=np.float32)
    for label, polygon in zip(labels, polygons):
        window, inside = _rasterize(polygon)
        image[window][inside] = PALETTE[label][::-1]
    image += NOISE_STD * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(image).clip(0, 255).astype(np.uint8), boxes, labels, polygons


def draw_rectangles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the rectangles of one image, without pixels.

    The number of rectangles is uniform on 0..30, their classes are uniform, their sides uniform on 12..80 pixels, their
    angles and places uniform where they lie wholly inside the image; so each box is the exact extent of its rectangle,
    hidden parts included.

    No two boxes have an IoU above 0.25. A rectangle that comes too close to one before it gets another angle and place
    until it fits, but keeps its sides, so that numbers and sides stay uniform. The large ones are placed first. That
    takes 1.2 tries for each on average, and ends even for 30 squares of 80 pixels, after some hundred tries.

    The small ones lie on top: the IoU of a box wholly inside a larger one is the ratio of their areas, so the small
    one may well be there, and would vanish below the large one. Of 30,000 rectangles this way the most hidden one still
    showed 27 % of its area, and 0.1 % showed less than half.

    Args:
        rng: Source of all randomness.

    Returns:
        - boxes: (M, 4) float64, xyxy pixels, the extents of the polygons.
        - labels: (M,) int64 in [0, 20); class ``c`` is the saturated colour of hue ``18 c`` degrees.
        - polygons: (M, 4, 2) float64, corners in xy pixels, multiples of 1/16 so that they are exact in JSON.

        The rectangles are ordered from bottom to top, the largest first.
    """
    count = int(rng.integers(MAX_OBJECTS + 1))
    sides = rng.uniform(*SIDE_RANGE, (count, 2))
    sides = sides[np.argsort(-sides.prod(1))]
    labels = rng.integers(len(CLASSES), size=count)
    polygons = np.empty((count, 4, 2))
    boxes = np.empty((count, 4))
    for i in range(count):
        while True:
            polygons[i] = _place_rectangle(rng, sides[i])
            boxes[i] = *polygons[i].min(0), *polygons[i].max(0)
            if np.all(_iou(boxes[i], boxes[:i]) <= MAX_IOU):
                break
    return boxes, labels, polygons


def _place_rectangle(rng: np.random.Generator, sides: np.ndarray) -> np.ndarray:
    """Corners (4, 2), in xy pixels, of a rectangle of these ``sides`` (2,), somewhere inside the image."""
    angle = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = _CORNERS * sides @ rotation
    reach = corners.max(0)
    center = rng.uniform(reach, (WIDTH, HEIGHT) - reach)
    return np.round((center + corners) * _CORNER_GRID) / _CORNER_GRID


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (M,) of a ``box`` (4,) with ``others`` (M, 4), xyxy."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = shared.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return intersection / ((box[2:] - box[:2]).prod() + areas - intersection)


def _rasterize(polygon: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window of the image around a convex ``polygon`` (4, 2), and which of its pixels (h, w) are inside."""
    left, top = np.floor(polygon.min(0)).astype(int)
    right, bottom = np.ceil(polygon.max(0)).astype(int)
    x = np.arange(left, right) + 0.5
    y = np.arange(top, bottom)[:, None] + 0.5
    inside = np.ones((bottom - top, right - left), dtype=bool)
    for (start_x, start_y), (edge_x, edge_y) in zip(polygon, np.roll(polygon, -1, axis=0) - polygon):
        inside &= edge_x * (y - start_y) >= edge_y * (x - start_x)
    return (slice(top, bottom), slice(left, right)), inside


def annotation_file(data_root: str | Path, size: str, seed: int, split: str) -> str:
    """Path of a split's COCO annotations, for ``CocoMetric(ann_file=...)``.

    mmengine builds the evaluator after the data set of its loop, so the file is there when the metric reads it.
    """
    _check_choice('split', split, SPLITS)
    return str(_folder(data_root, size, seed) / f'{split}.json')


def make_color_boxes(root: str | Path, size: str = 'small', seed: int = 0) -> Path:
    """Write Color Boxes in COCO format, or return at once if it is there.

    Image ``i`` of a split depends on the seed, the split and ``i`` alone: the small set is the beginning of the full
    one, and neither depends on what is drawn before or by whom.

    The folder gets its name when it is complete. It is written beside it, under a lock, so several processes make it
    once while the others wait; what a killed maker left is removed by the next one.

    Args:
        root: Folder that holds all variants, made if missing.
        size: A key of ``SIZES``.
        seed: Any integer from 0 on.

    Returns:
        ``<root>/<size>_v2_seed<seed>``, with ``train/*.jpg``, ``val/*.jpg``, ``train.json`` and ``val.json``.

    Raises:
        ValueError: If ``size`` or ``seed`` is not one of these.
        OSError: If the folder cannot be written, or is there without its annotations.
    """
    folder = _folder(root, size, seed)
    if _is_complete(folder):
        return folder
    partial = folder.with_name(f'.{folder.name}.partial')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f'.{folder.name}.lock')):
            if _is_complete(folder):
                return folder
            if folder.exists():
                raise FileExistsError(f'{folder} lacks train.json or val.json; remove it, and it is made anew')
            if partial.exists():
                shutil.rmtree(partial)
            try:
                _write_splits(partial, size, seed)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise OSError(
            f'Color Boxes cannot be written to {root}: {error}. Another folder is chosen by data_root=... of '
            'ColorBoxesDataset, or --root of tools/color_boxes.py.'
        ) from error
    return folder


def _folder(root: str | Path, size: str, seed: int) -> Path:
    _check_choice('size', size, SIZES)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f'seed of Color Boxes must be an integer from 0 on, got {seed!r}.')
    return Path(root) / f'{size}_v{VERSION}_seed{seed}'


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} of Color Boxes must be one of {", ".join(map(repr, choices))}; got {value!r}.')


def _is_complete(folder: Path) -> bool:
    return all((folder / f'{split}.json').is_file() for split in SPLITS)


def _write_splits(folder: Path, size: str, seed: int) -> None:
    with tqdm(total=sum(SIZES[size]), desc=f'Making Color Boxes {size}', unit='image') as progress:
        for split_index, (split, count) in enumerate(zip(SPLITS, SIZES[size])):
            (folder / split).mkdir(parents=True)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image_id in range(count):
                image, boxes, labels, polygons = draw_image(np.random.default_rng([seed, split_index, image_id]))
                file_name = f'{image_id:06d}.jpg'
                # cv2.imwrite answers a full disk with False; write_bytes raises.
                _, jpeg = cv2.imencode('.jpg', image, _JPEG)
                (folder / split / file_name).write_bytes(jpeg.tobytes())
                images.append({'id': image_id, 'file_name': file_name, 'width': WIDTH, 'height': HEIGHT})
                # pycocotools takes annotation id 0 for 'no match', so ids start at 1.
                annotations += [
                    _annotation(len(annotations) + i, image_id, *instance)
                    for i, instance in enumerate(zip(boxes, labels, polygons), start=1)
                ]
                progress.update()
            categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, start=1)]
            content = {'images': images, 'annotations': annotations, 'categories': categories}
            (folder / f'{split}.json').write_text(json.dumps(content))


def _annotation(annotation_id: int, image_id: int, box: np.ndarray, label: int, polygon: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = box.tolist()
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': int(label) + 1,
        'bbox': [left, top, right - left, bottom - top],
        'area': cv2.contourArea(polygon.astype(np.float32)),
        'segmentation': [polygon.ravel().tolist()],
        'iscrowd': 0,
    }


@DATASETS.register_module()
class ColorBoxesDataset(CocoDataset):
    """Color Boxes; made on first use.

    Args:
        split: 'train' or 'val'; None: 'val' with ``test_mode``, else 'train'.
        size: 'full' (4800 train, 960 val images), 'small' (1200, 200) or 'mini' (16, 8).
        seed: Seed of the data, not of the training.
        data_root: Folder for all sizes and seeds; see :func:`make_color_boxes`.
        **kwargs: Arguments of mmdet's ``CocoDataset``, but ``ann_file`` and ``data_prefix``, which this class sets.

    Raises:
        ValueError: If ``split``, ``size`` or ``seed`` is not one of these.
        OSError: If the data are missing and cannot be written to ``data_root``.

    Images without a rectangle occur (about 3 %); ``filter_cfg=dict(filter_empty_gt=True)`` drops them in training.
    """

    METAINFO: ClassVar[dict] = {'classes': CLASSES, 'palette': PALETTE}

    def __init__(
        self,
        split: str | None = None,
        size: str = 'small',
        seed: int = 0,
        data_root: str | Path = 'data/color_boxes',
        **kwargs: Any,
    ) -> None:
        if split is None:
            split = 'val' if kwargs.get('test_mode') else 'train'
        ann_file = Path(annotation_file(data_root, size, seed, split))
        self._make_arguments = (data_root, size, seed)
        super().__init__(
            data_root=str(ann_file.parent), ann_file=ann_file.name, data_prefix={'img': f'{split}/'}, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Make the data if they are missing, and load the annotations."""
        make_color_boxes(*self._make_arguments)
        return super().load_data_list()
