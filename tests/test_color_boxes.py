"""Color Boxes: what is drawn is the paper's data set, and what is annotated."""

import colorsys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import stats

from uotod_mmdet.datasets import color_boxes
from uotod_mmdet.datasets.color_boxes import PALETTE, draw_image, draw_rectangles

WIDTH, HEIGHT = 500, 400
pytestmark = [
    pytest.mark.slow,
    # pycocotools 2.0.11 under numpy 2, once a mask
    pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning'),
]


@pytest.fixture(scope='module')
def rectangles():
    """1000 images without pixels as (boxes, labels, polygons)."""
    return [draw_rectangles(np.random.default_rng([7, 0, i])) for i in range(1000)]


@pytest.fixture(scope='module')
def drawn():
    """100 images as (image, boxes, labels, polygons)."""
    return [draw_image(np.random.default_rng([7, 0, i])) for i in range(100)]


def repaint(polygons):
    """Mask of each polygon by pycocotools (M, 400, 500), and the part of it that those after it leave visible."""
    masks = [coco_mask.decode(coco_mask.frPyObjects([p.ravel().tolist()], HEIGHT, WIDTH))[..., 0] > 0 for p in polygons]
    visible, covered = [], np.zeros((HEIGHT, WIDTH), dtype=bool)
    for mask in masks[::-1]:
        visible.insert(0, mask & ~covered)
        covered |= mask
    return masks, visible, covered


def test_every_box_is_the_extent_of_its_polygon_and_inside_the_image(rectangles):
    for boxes, labels, polygons in rectangles:
        assert len(boxes) == len(labels) == len(polygons)
    boxes = np.concatenate([r[0] for r in rectangles])
    polygons = np.concatenate([r[2] for r in rectangles])
    assert np.array_equal(boxes[:, 0], polygons[..., 0].min(1))
    assert np.array_equal(boxes[:, 1], polygons[..., 1].min(1))
    assert np.array_equal(boxes[:, 2], polygons[..., 0].max(1))
    assert np.array_equal(boxes[:, 3], polygons[..., 1].max(1))
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 500 and boxes[:, 3].max() <= 400


def test_polygons_are_rectangles_of_12_to_80_pixels_at_any_angle(rectangles):
    edges = np.concatenate([np.roll(r[2], -1, axis=1) - r[2] for r in rectangles])
    sides = np.linalg.norm(edges, axis=2)
    assert sides.min() > 11.8 and sides.max() < 80.2
    cosines = (edges[:, 0] * edges[:, 1]).sum(1) / (sides[:, 0] * sides[:, 1])
    assert np.abs(cosines).max() < 0.02
    # A rectangle that was placed anew keeps its sides, so these are uniform; the angles nearly.
    assert stats.kstest(sides[:, :2].ravel(), stats.uniform(12, 68).cdf).pvalue > 1e-3
    angles = np.degrees(np.arctan2(edges[:, 0, 1], edges[:, 0, 0])) % 180
    per_tenth = np.histogram(angles, bins=10, range=(0, 180))[0]
    assert per_tenth.min() > 0.85 * len(angles) / 10


def test_counts_from_0_to_30_are_uniform_and_so_are_the_classes(rectangles):
    counts = [len(r[1]) for r in rectangles]
    assert stats.chisquare(np.bincount(counts, minlength=31)).pvalue > 1e-3
    labels = np.concatenate([r[1] for r in rectangles])
    assert stats.chisquare(np.bincount(labels, minlength=20)).pvalue > 1e-3


def test_no_image_loses_rectangles_where_they_are_hard_to_place(rectangles, monkeypatch):
    monkeypatch.setattr(color_boxes, 'SIDE_RANGE', (70, 80))
    for i, (boxes, _, _) in enumerate(rectangles[:60]):
        assert len(draw_rectangles(np.random.default_rng([7, 0, i]))[0]) == len(boxes)
    assert 30 in [len(boxes) for boxes, _, _ in rectangles[:60]]


def test_largest_iou_of_two_boxes_is_a_quarter(rectangles):
    largest = []
    for boxes, _, _ in rectangles:
        if len(boxes) > 1:
            xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
            ious = coco_mask.iou(xywh, xywh, np.zeros(len(boxes)))
            largest.append(ious[~np.eye(len(boxes), dtype=bool)].max())
    assert 0.249 < max(largest) <= 0.25


def test_smaller_rectangles_lie_on_top_and_none_vanishes(drawn):
    shares = []
    for _, _, _, polygons in drawn:
        areas = [cv2.contourArea(p.astype(np.float32)) for p in polygons]
        assert np.all(np.diff(areas) < 10)  # corners are rounded
        masks, visible, _ = repaint(polygons)
        shares += [v.sum() / m.sum() for m, v in zip(masks, visible)]
    assert min(shares) > 0.25
    assert np.mean(np.array(shares) < 0.9) > 0.1, 'overlaps must occur'


def test_noise_is_gaussian_and_independent_on_each_channel_of_each_pixel(drawn):
    image = next(d[0] for d in drawn if len(d[2]) == 0)
    assert (image.shape, image.dtype) == ((400, 500, 3), np.uint8)
    noise = image.reshape(-1, 3) - 127.5
    assert noise.mean(0) == pytest.approx(0, abs=0.2)
    assert noise.std(0) == pytest.approx(0.05 * 255, abs=0.1)
    assert np.abs(stats.kurtosis(noise)).max() < 0.05
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.01
    for shifted in (image[1:, :, 0], image[:-1, 1:, 0]):
        still = image[: shifted.shape[0], : shifted.shape[1], 0]
        assert abs(np.corrcoef(shifted.ravel(), still.ravel())[0, 1]) < 0.01


def test_color_of_visible_pixels_is_that_of_the_class_with_noise(drawn):
    checked = 0
    outline = np.ones((3, 3), np.uint8)
    for image, _, labels, polygons in drawn[:30]:
        _, visible, _ = repaint(polygons)
        for label, mask in zip(labels, visible):
            pixels = image[cv2.erode(mask.astype(np.uint8), outline) > 0]
            if len(pixels) < 200:
                continue
            blue, green, red = pixels.mean(0) / 255
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            assert abs((hue * 360 - 18 * label + 180) % 360 - 180) < 1.5
            assert saturation > 0.95 and value > 0.95  # noise is cut at 0 and 255, which moves the mean inwards
            # A Gaussian that is cut at its mean keeps 0.584 of its standard deviation.
            assert pixels[:, 2 - np.argmax(PALETTE[label])].std() == pytest.approx(12.75 * 0.584, rel=0.25)
            checked += 1
    assert checked > 200


def test_picture_shows_the_annotated_rectangles_and_no_other(drawn):
    for image, _, _, polygons in drawn[:50]:
        masks, _, covered = repaint(polygons)
        # All 20 colours are saturated: some channel is 255 and another 0, which noise changes by far less than 105.
        colored = image.max(2).astype(int) - image.min(2) > 150
        outline = np.ones((3, 3), np.uint8)
        around = cv2.dilate(covered.astype(np.uint8), outline) > 0
        assert not np.any(colored & ~around)
        for mask in masks:
            assert np.all(colored[cv2.erode(mask.astype(np.uint8), outline) > 0])
