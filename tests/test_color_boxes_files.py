"""Color Boxes on disk: what was drawn is in the files, mmdet reads it, and what is there is whole."""

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
from pycocotools.coco import COCO

from uotod_mmdet.datasets import color_boxes
from uotod_mmdet.datasets.color_boxes import CLASSES, PALETTE, annotation_file, draw_image, make_color_boxes

pytestmark = pytest.mark.slow
FORK = multiprocessing.get_context('fork')


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('color_boxes')
    make_color_boxes(root, 'mini')
    return root


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(data_root, tmp_path):
    first = files(data_root / 'mini_v2_seed0')
    assert len(first) == 16 + 8 + 2
    assert files(make_color_boxes(tmp_path, 'mini', seed=0)) == first
    other = files(make_color_boxes(tmp_path, 'mini', seed=1))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_an_image_does_not_depend_on_the_size_of_the_set(data_root, tmp_path, monkeypatch):
    monkeypatch.setitem(color_boxes.SIZES, 'mini', (3, 2))
    small = make_color_boxes(tmp_path, 'mini')
    large = data_root / 'mini_v2_seed0'
    for name in ('train/000002.jpg', 'val/000001.jpg'):
        assert (small / name).read_bytes() == (large / name).read_bytes()
    assert (large / 'train/000000.jpg').read_bytes() != (large / 'val/000000.jpg').read_bytes()


def test_files_hold_what_was_drawn(data_root):
    folder = data_root / 'mini_v2_seed0'
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


def test_noise_of_the_files_is_independent_on_each_channel(data_root):
    coco = COCO(annotation_file(data_root, 'mini', 0, 'train'))
    emptiest = min(coco.imgs, key=lambda image_id: len(coco.imgToAnns[image_id]))
    image = cv2.imread(str(data_root / 'mini_v2_seed0' / 'train' / coco.imgs[emptiest]['file_name']))
    pixels = image[image.max(2).astype(int) - image.min(2) < 150]
    assert pixels.std(0) == pytest.approx(12.75, rel=0.2)
    assert np.abs(np.corrcoef(pixels.T) - np.eye(3)).max() < 0.1


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
    assert not (tmp_path / 'mini_v2_seed0').exists()

    made = make_color_boxes(tmp_path, 'mini')
    assert files(made) == files(data_root / 'mini_v2_seed0')
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ['mini_v2_seed0']


def test_two_makers_at_once_make_the_data_once(data_root, tmp_path):
    started, drawn = FORK.Barrier(2), FORK.Value('i', 0)
    makers = [FORK.Process(target=make_slowly, args=(tmp_path, started, drawn)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(timeout=20)
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert drawn.value == 16 + 8
    assert files(tmp_path / 'mini_v2_seed0') == files(data_root / 'mini_v2_seed0')


def test_a_folder_that_is_there_is_used_without_writing(data_root, monkeypatch):
    monkeypatch.setattr(color_boxes, 'draw_image', None)
    monkeypatch.setattr(color_boxes, 'FileLock', None)
    assert make_color_boxes(data_root, 'mini') == data_root / 'mini_v2_seed0'


def test_a_folder_without_annotations_is_not_trusted(tmp_path):
    (tmp_path / 'mini_v2_seed0' / 'train').mkdir(parents=True)
    with pytest.raises(OSError, match=r'mini_v2_seed0 lacks train\.json or val\.json; remove it'):
        make_color_boxes(tmp_path, 'mini')
    assert list((tmp_path / 'mini_v2_seed0').iterdir()) == [tmp_path / 'mini_v2_seed0' / 'train']


def test_pictures_of_the_first_version_are_not_read(tmp_path):
    old = tmp_path / 'mini_seed0'
    old.mkdir()
    for split in ('train', 'val'):
        (old / f'{split}.json').write_text('{}')
    assert len(build(tmp_path)) == 16
    assert sorted(path.name for path in old.iterdir()) == ['train.json', 'val.json']


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
    assert (tmp_path / 'mini_v2_seed0' / 'val.json').is_file()


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
    assert dataset.ann_file == path == str(Path(data_root, 'mini_v2_seed0', 'val.json'))
    assert len(json.loads(Path(path).read_text())['images']) == 8
