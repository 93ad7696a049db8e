"""Color Boxes: what is drawn is what is annotated, and what is on disk is whole."""

import colorsys
import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from uotod_mmdet.datasets import color_boxes
from uotod_mmdet.datasets.color_boxes import CLASSES, PALETTE, annotation_file, draw_image, make_color_boxes

WIDTH, HEIGHT = 500, 400
pytestmark = [
    pytest.mark.slow,
    # pycocotools 2.0.11 under numpy 2, once a mask
    pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning'),
]
FORK = multiprocessing.get_context('fork')


@pytest.fixture(scope='module')
def drawn():
    """300 images as (image, boxes, labels, polygons)."""
    return [draw_image(np.random.default_rng([7, 0, i])) for i in range(300)]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('color_boxes')
    make_color_boxes(root, 'mini')
    return root


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def repaint(polygons):
    """Mask of each polygon by pycocotools (M, 400, 500), and the part of it that those before it leave visible."""
    masks = [coco_mask.decode(coco_mask.frPyObjects([p.ravel().tolist()], HEIGHT, WIDTH))[..., 0] > 0 for p in polygons]
    visible, covered = [], np.zeros((HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        visible.append(mask & ~covered)
        covered |= mask
    return masks, visible, covered


def test_every_box_is_the_extent_of_its_polygon_and_inside_the_image(drawn):
    for image, boxes, labels, polygons in drawn:
        assert (image.shape, image.dtype) == ((400, 500, 3), np.uint8)
        assert len(boxes) == len(labels) == len(polygons)
    boxes = np.concatenate([d[1] for d in drawn])
    polygons = np.concatenate([d[3] for d in drawn])
    assert np.array_equal(boxes[:, 0], polygons[..., 0].min(1))
    assert np.array_equal(boxes[:, 1], polygons[..., 1].min(1))
    assert np.array_equal(boxes[:, 2], polygons[..., 0].max(1))
    assert np.array_equal(boxes[:, 3], polygons[..., 1].max(1))
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 500 and boxes[:, 3].max() <= 400


def test_polygons_are_rectangles_of_24_to_100_pixels_at_any_angle(drawn):
    edges = np.concatenate([np.roll(d[3], -1, axis=1) - d[3] for d in drawn])
    sides = np.linalg.norm(edges, axis=2)
    assert sides.min() > 23.8 and sides.max() < 100.2
    cosines = (edges[:, 0] * edges[:, 1]).sum(1) / (sides[:, 0] * sides[:, 1])
    assert np.abs(cosines).max() < 0.01
    angles = np.degrees(np.arctan2(edges[:, 0, 1], edges[:, 0, 0])) % 180
    per_tenth = np.histogram(angles, bins=10, range=(0, 180))[0]
    assert per_tenth.min() > 0.85 * len(angles) / 10
    # log-uniform: as many below the geometric mean of the range as above it
    assert np.mean(sides < np.sqrt(24 * 100)) == pytest.approx(0.5, abs=0.02)


def test_counts_cover_0_to_30_and_classes_are_balanced(drawn):
    counts = np.array([len(d[2]) for d in drawn])
    assert set(counts) == set(range(31))
    assert counts.mean() == pytest.approx(15, abs=1)
    per_class = np.bincount(np.concatenate([d[2] for d in drawn]), minlength=20)
    expected = per_class.sum() / 20
    assert len(per_class) == 20
    assert ((per_class - expected) ** 2 / expected).sum() < 43.8  # 99.9 % of chi-square with 19 degrees of freedom


def test_background_is_grey_noise_around_mid_grey(drawn):
    image, _, labels, _ = next(d for d in drawn if len(d[2]) == 0)
    assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
    assert image.mean() == pytest.approx(128, abs=1)
    assert image.std() == pytest.approx(16, abs=1)


def test_every_rectangle_is_at_least_30_percent_visible(drawn):
    shares = []
    for _, _, _, polygons in drawn[:150]:
        masks, visible, _ = repaint(polygons)
        shares += [v.sum() / m.sum() for m, v in zip(masks, visible)]
    assert min(shares) > 0.5 - 0.02  # pycocotools rounds outlines otherwise than we do
    assert np.mean(np.array(shares) < 0.9) > 0.1, 'overlaps must occur'


def test_colour_of_visible_pixels_is_the_class_hue(drawn):
    checked = 0
    for image, boxes, labels, polygons in drawn[:100]:
        _, visible, _ = repaint(polygons)
        for box, label, mask in zip(boxes, labels, visible):
            x, y = (int(v) for v in ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
            centre = mask[y - 2 : y + 3, x - 2 : x + 3]
            if not centre.all():
                continue
            blue, green, red = image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0) / 255
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            off = (hue * 360 - 18 * label + 180) % 360 - 180
            assert abs(off) < 2.5
            assert saturation > 0.69 and value > 0.69
            checked += 1
    assert checked > 500


def test_picture_shows_the_annotated_rectangles_and_no_other(drawn):
    for image, _, _, polygons in drawn[:50]:
        masks, _, covered = repaint(polygons)
        colored = image.max(2) != image.min(2)
        outline = np.ones((3, 3), np.uint8)
        around = cv2.dilate(covered.astype(np.uint8), outline) > 0
        assert not np.any(colored & ~around)
        for mask in masks:
            assert np.all(colored[cv2.erode(mask.astype(np.uint8), outline) > 0])


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(data_root, tmp_path):
    first = files(data_root / 'mini_seed0')
    assert len(first) == 16 + 8 + 2
    assert files(make_color_boxes(tmp_path, 'mini', seed=0)) == first
    other = files(make_color_boxes(tmp_path, 'mini', seed=1))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_an_image_does_not_depend_on_the_size_of_the_set(data_root, tmp_path, monkeypatch):
    monkeypatch.setitem(color_boxes.SIZES, 'mini', (3, 2))
    small = make_color_boxes(tmp_path, 'mini')
    large = data_root / 'mini_seed0'
    for name in ('train/000002.jpg', 'val/000001.jpg'):
        assert (small / name).read_bytes() == (large / name).read_bytes()
    assert (large / 'train/000000.jpg').read_bytes() != (large / 'val/000000.jpg').read_bytes()


def test_files_hold_what_was_drawn(data_root):
    folder = data_root / 'mini_seed0'
    coco = COCO(str(folder / 'val.json'))
    assert sorted(coco.cats) == list(range(1, 21))
    assert sorted(coco.imgs) == list(range(8))
    for image_id in coco.imgs:
        image, boxes, labels, polygons = draw_image(np.random.default_rng([0, 1, image_id]))
        annotations = coco.imgToAnns[image_id]
        x, y, w, h = np.array([a['bbox'] for a in annotations]).reshape(-1, 4).T
        assert np.array_equal(np.stack([x, y, x + w, y + h], axis=1), boxes)
        assert [a['category_id'] - 1 for a in annotations] == labels.tolist()
        for annotation, polygon in zip(annotations, polygons):
            assert annotation['segmentation'] == [polygon.ravel().tolist()]
            assert annotation['area'] == pytest.approx(
                np.prod(np.linalg.norm(np.diff(polygon[:3], axis=0), axis=1)), 1e-2
            )
            assert annotation['iscrowd'] == 0
        decoded = cv2.imread(str(folder / 'val' / coco.imgs[image_id]['file_name']))
        assert np.abs(decoded.astype(int) - image).mean() < 6  # JPEG rounds the noise


def test_images_without_a_rectangle_are_kept_unless_filtered(tmp_path, monkeypatch):
    monkeypatch.setattr(color_boxes, 'MAX_OBJECTS', 1)
    make_color_boxes(tmp_path, 'mini')
    dataset = build(tmp_path)
    counts = [len(dataset[i]['data_samples'].gt_instances) for i in range(len(dataset))]
    assert len(counts) == 16 and set(counts) == {0, 1}
    assert len(build(tmp_path, filter_cfg=dict(filter_empty_gt=True))) == sum(counts)


def make_slowly(root, started, drawn):
    """Make the data, at 20 ms an image, after all who wait for ``started`` are there; count images in ``drawn``."""

    def draw_slowly(rng):
        time.sleep(0.02)
        with drawn.get_lock():
            drawn.value += 1
        return draw_image(rng)

    color_boxes.draw_image = draw_slowly
    if started is not None:
        started.wait()
    make_color_boxes(root, 'mini')


def test_a_killed_maker_leaves_nothing_that_is_trusted(data_root, tmp_path):
    maker = FORK.Process(target=make_slowly, args=(tmp_path, None, FORK.Value('i', 0)))
    maker.start()
    deadline = time.monotonic() + 20
    while len(list(tmp_path.rglob('*.jpg'))) < 3:
        assert maker.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert maker.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob('*.jpg'))) >= 3, 'the kill came while images were written'
    assert not (tmp_path / 'mini_seed0').exists()

    made = make_color_boxes(tmp_path, 'mini')
    assert files(made) == files(data_root / 'mini_seed0')
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ['mini_seed0']


def test_two_makers_at_once_make_the_data_once(data_root, tmp_path):
    started, drawn = FORK.Barrier(2), FORK.Value('i', 0)
    makers = [FORK.Process(target=make_slowly, args=(tmp_path, started, drawn)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(timeout=20)
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert drawn.value == 16 + 8
    assert files(tmp_path / 'mini_seed0') == files(data_root / 'mini_seed0')


def test_a_folder_that_is_there_is_used_without_writing(data_root, monkeypatch):
    monkeypatch.setattr(color_boxes, 'draw_image', None)
    monkeypatch.setattr(color_boxes, 'FileLock', None)
    assert make_color_boxes(data_root, 'mini') == data_root / 'mini_seed0'


def test_a_folder_without_annotations_is_not_trusted(tmp_path):
    (tmp_path / 'mini_seed0' / 'train').mkdir(parents=True)
    with pytest.raises(OSError, match=r'mini_seed0 lacks train\.json or val\.json; remove it'):
        make_color_boxes(tmp_path, 'mini')
    assert list((tmp_path / 'mini_seed0').iterdir()) == [tmp_path / 'mini_seed0' / 'train']


def fill_disk(root, message):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        make_color_boxes(root, 'mini')
    except OSError as error:
        message.put(str(error))


def test_a_failing_write_is_named_and_leaves_no_data(tmp_path):
    message = FORK.SimpleQueue()
    maker = FORK.Process(target=fill_disk, args=(tmp_path, message))
    maker.start()
    maker.join(timeout=20)
    assert maker.exitcode == 0
    assert message.get().startswith(f'Color Boxes cannot be written to {tmp_path}: [Errno 27] File too large')
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_root_that_cannot_be_written_is_named_with_its_argument(tmp_path):
    (tmp_path / 'file').write_text('')
    root = tmp_path / 'file' / 'data'
    with pytest.raises(OSError, match=f'cannot be written to {root}: .*data_root=.*--root'):
        make_color_boxes(root, 'mini')


def build(root, **kwargs):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True),
        dict(type='mmdet.PackDetInputs'),
    ]
    cfg = dict(type='uotod_mmdet.ColorBoxesDataset', data_root=str(root), size='mini', pipeline=pipeline)
    return DATASETS.build(Config(dict(dataset=dict(cfg, **kwargs))).dataset)


@pytest.mark.parametrize(('split', 'images'), [('train', 16), ('val', 8)])
def test_dataset_loads_through_mmdet_what_pycocotools_counts(data_root, split, images):
    dataset = build(data_root, split=split, filter_cfg=dict(filter_empty_gt=False))
    coco = COCO(annotation_file(data_root, 'mini', 0, split))
    assert len(dataset) == len(coco.imgs) == images
    loaded = 0
    for i in range(len(dataset)):
        item = dataset[i]
        assert item['inputs'].shape == (3, 400, 500)
        instances = item['data_samples'].gt_instances
        annotations = coco.imgToAnns[item['data_samples'].img_id]
        assert (instances.labels + 1).tolist() == [a['category_id'] for a in annotations]
        boxes = instances.bboxes.tensor.numpy()
        assert np.array_equal(boxes[:, :2], np.array([a['bbox'][:2] for a in annotations]).reshape(-1, 2))
        loaded += len(instances)
    assert loaded == len(coco.anns) > 0


def test_class_names_and_palette_are_the_hues(data_root):
    dataset = build(data_root, lazy_init=True)
    assert dataset.metainfo['classes'] == CLASSES
    assert CLASSES[:2] == ('hue000', 'hue018') and len(CLASSES) == len(PALETTE) == 20
    for index, color in enumerate(PALETTE):
        assert colorsys.rgb_to_hsv(*color)[0] * 360 == pytest.approx(18 * index, abs=0.5)


def test_dataset_is_made_on_first_use(tmp_path):
    dataset = build(tmp_path, lazy_init=True)
    assert list(tmp_path.iterdir()) == []
    assert len(dataset) == 16
    assert (tmp_path / 'mini_seed0' / 'val.json').is_file()


@pytest.mark.parametrize('with_ann_file', [True, False])
def test_coco_metric_gives_perfect_detections_ap_1(data_root, with_ann_file):
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmdet.PackDetInputs', meta_keys=meta_keys)]
    dataset = build(data_root, split='val', test_mode=True, pipeline=pipeline)
    ann_file = annotation_file(data_root, 'mini', 0, 'val') if with_ann_file else None
    evaluator = Evaluator(dict(type='mmdet.CocoMetric', ann_file=ann_file))
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        boxes = np.array([x['bbox'] for x in sample.instances], dtype=np.float32).reshape(-1, 4)
        labels = np.array([x['bbox_label'] for x in sample.instances], dtype=np.int64)
        sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=np.ones(len(labels))).to_tensor()
        evaluator.process([sample])
    assert evaluator.evaluate(len(dataset))['coco/bbox_mAP'] == 1.0


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(size='tiny'), r"size .* must be one of 'full', 'small', 'mini'; got 'tiny'"),
        (dict(split='test'), r"split .* must be one of 'train', 'val'; got 'test'"),
        (dict(seed=-1), r'seed .* must be an integer from 0 on, got -1'),
    ],
)
def test_unknown_choice_is_answered_with_the_choices(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_annotation_file_is_where_the_data_set_reads(data_root):
    dataset = build(data_root, split='val')
    path = annotation_file(data_root, 'mini', 0, 'val')
    assert dataset.ann_file == path == str(Path(data_root, 'mini_seed0', 'val.json'))
    assert len(json.loads(Path(path).read_text())['images']) == 8
