"""tools/study.py on a user's own folder: COCO and Pascal VOC, folds, and folders with mistakes."""

import json
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from test_study import StudyError, call, load_study, results_of, write_study
from test_tools import draw_cells

from study_data import find_folder, read_folder, split_folds, use_folder, write_files  # isort: skip
from study_file import Run  # isort: skip


def write_coco(folder, splits, names=('fruit',), where='', image_dir='pictures'):
    """A COCO folder; ``splits`` holds the number of images of each. Ids are those of no other image."""
    rng = np.random.default_rng(0)
    (folder / image_dir).mkdir(parents=True)
    for split, count in splits.items():
        images, annotations = [], []
        for index in range(count):
            name = f'{split}{index}.png'
            picture = rng.integers(190, 230, (96, 128, 3), dtype=np.uint8)
            cv2.rectangle(picture, (20 + index, 30), (60 + index, 70), (40, 40, 200), -1)
            cv2.imwrite(str(folder / image_dir / name), picture)
            images.append(dict(id=10 + index, file_name=name, width=128, height=96))
            box = dict(bbox=[20 + index, 30, 40, 40], area=1600, iscrowd=0)
            annotations.append(dict(id=index, image_id=10 + index, category_id=7 + index % len(names), **box))
        categories = [dict(id=7 + index, name=name) for index, name in enumerate(names)]
        path = folder / where.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


@pytest.mark.parametrize('where', ['{}.json', 'annotations/instances_{}2017.json', '{}/_annotations.coco.json'])
def test_coco_folder_is_read_wherever_its_files_are(tmp_path, where):
    write_coco(tmp_path, dict(train=4, val=2), where=where)
    found = read_folder(tmp_path)
    assert {split: len(ids) for split, ids in found.splits.items()} == dict(train=4, val=2)
    names = {image['id']: image['file_name'] for image in found.images}
    assert [names[number] for number in found.splits['val']] == ['pictures/val0.png', 'pictures/val1.png']
    assert [a['bbox'][0] for a in found.annotations] == [20, 21, 22, 23, 20, 21]


def test_voc_folder_is_read_as_mmdet_reads_it(tmp_path):
    draw_cells(tmp_path)
    found = read_folder(tmp_path)
    assert found.dropped == 2  # two boxes of draw_cells have no area
    assert {split: len(ids) for split, ids in found.splits.items()} == dict(train=4, val=3)
    boxes = [a['bbox'] for a in found.annotations if a['category'] == 'RBC']
    assert boxes[0] == [19, 29, 100, 80]  # 20, 30 to 120, 110, counted from 1


def test_folds_are_disjoint_cover_all_and_never_change():
    images = [dict(id=index, file_name=f'{index // 2}_{index % 2}.png') for index in range(22)]
    folds = split_folds(images, 4)
    assert sorted(sum(folds, [])) == list(range(22)) and {len(fold) for fold in folds} <= {5, 6}
    assert split_folds(list(reversed(images)), 4) == folds
    grouped = split_folds(images, 4, group=r'(\d+)_')
    assert all(number ^ 1 in fold for fold in grouped for number in fold)
    with pytest.raises(StudyError, match='folds must be from 2 to 11'):
        split_folds(images, 12, group=r'(\d+)_')


def test_config_trains_on_the_folder_with_its_classes(tmp_path):
    write_coco(tmp_path / 'fruit', dict(train=8), names=('pear', 'fig', 'plum'), where='all.json')
    data = dict(folder=str(tmp_path / 'fruit'), folds=4, img_scale=(96, 96), batch_size=2)
    words, checksum = write_files(data, tmp_path / 'files')
    assert words == 'fruit: 8 images in 4 folds, 3 classes: fig (3), pear (3), plum (2).'
    assert write_files(data, tmp_path / 'files')[1] == checksum
    cfg = Config.fromfile('configs/color_boxes/retinanet_tiny_soft.py')
    use_folder(cfg, data, Run('a', 'fruit', 0, 1), tmp_path / 'files')
    assert cfg.model.bbox_head.num_classes == 3 and cfg.train_dataloader.batch_size == 2
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'files/fold1_val.json')
    train, val = (loader.dataset for loader in (cfg.train_dataloader, cfg.val_dataloader))
    assert train.metainfo.classes == ['fig', 'pear', 'plum'] and val.test_mode
    assert {step.scale for step in (*train.pipeline, *val.pipeline) if step.type == 'Resize'} == {(96, 96)}
    contents = [json.loads((tmp_path / 'files' / f'fold1_{split}.json').read_text()) for split in ('train', 'val')]
    assert [len(content['images']) for content in contents] == [6, 2]


def test_missing_folder_is_answered_with_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv('FRUIT', raising=False)
    with pytest.raises(StudyError, match='set the environment variable FRUIT to the folder'):
        find_folder('${FRUIT}')
    monkeypatch.setenv('FRUIT', str(tmp_path / 'nowhere'))
    with pytest.raises(StudyError, match='there is no folder .*nowhere; give one in COCO, Pascal VOC or YOLO format'):
        find_folder('${FRUIT}')


def test_folder_without_annotations_is_refused(tmp_path, monkeypatch):
    with pytest.raises(StudyError, match='the folder is empty; give one in COCO, Pascal VOC or YOLO format'):
        read_folder(tmp_path)
    (tmp_path / 'notes.txt').write_text('Nothing here.')
    with pytest.raises(SystemExit, match='there are no annotations: neither Annotations/.*xml .* nor a train.json'):
        call(monkeypatch, 'run', '--data', tmp_path, '--work-dir', tmp_path / 'work')
    write_coco(tmp_path, dict(train=2), where='train.json')
    content = json.loads((tmp_path / 'train.json').read_text())
    (tmp_path / 'train.json').write_text(json.dumps({**content, 'annotations': []}))
    with pytest.raises(StudyError, match='no annotation holds a box of at least one pixel'):
        read_folder(tmp_path)


def test_empty_validation_split_is_refused(tmp_path):
    write_coco(tmp_path, dict(train=4, val=0), where='{}.json')
    with pytest.raises(StudyError, match="the split 'val' holds no images; fill it, or remove its file"):
        read_folder(tmp_path)
    content = json.loads((tmp_path / 'train.json').read_text())
    (tmp_path / 'val.json').write_text(json.dumps({**content, 'annotations': []}))
    with pytest.raises(StudyError, match="no image of the validation split 'val' holds an object"):
        write_files(dict(folder=str(tmp_path)), tmp_path / 'files')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda folder: (folder / 'pictures/train1.png').unlink(), "the image 'train1.png' is not there"),
        (lambda folder: (folder / 'train.json').write_text('{'), 'train.json is no JSON'),
        (lambda folder: shutil.copy(folder / 'train.json', folder / 'train2.json'), "split 'train' .*keep one"),
    ],
)
def test_mistake_in_a_coco_folder_is_named(tmp_path, spoil, message):
    write_coco(tmp_path, dict(train=2, val=1), where='{}.json')
    spoil(tmp_path)
    with pytest.raises(StudyError, match=message):
        read_folder(tmp_path)


def test_folder_without_validation_split_needs_folds_in_a_study(tmp_path):
    write_coco(tmp_path, dict(train=2), where='train.json')
    with pytest.raises(StudyError, match='there is no validation split; give the data set folds=4'):
        write_files(dict(folder=str(tmp_path)), tmp_path / 'files')


def test_study_goes_without_the_folder_until_a_run_needs_it(tmp_path, monkeypatch):
    monkeypatch.delenv('FRUIT', raising=False)
    path = write_study(tmp_path, data=dict(fruit=dict(folder='${FRUIT}', folds=2)))
    assert len(load_study(path).runs()) == 6
    call(monkeypatch, 'report', path, '--out', tmp_path)
    with pytest.raises(SystemExit, match='set the environment variable FRUIT'):
        call(monkeypatch, 'run', path, '--work-dir', tmp_path)


@pytest.mark.slow
def test_folder_of_one_class_ends_in_a_report(tmp_path, monkeypatch, capsys):
    write_coco(tmp_path / 'fruit', dict(train=4, val=2), where='{}.json')
    flags = ['--epochs', 1, '--seeds', 0, '--only', 'stock ATSS', '--work-dir', tmp_path / 'work']
    call(monkeypatch, 'run', '--data', tmp_path / 'fruit', *flags)
    (line,) = results_of(tmp_path / 'work/fruit/fruit.py')
    assert line['status'] == 'done' and list(line['final']) and line['data_hash']
    printed = capsys.readouterr().out
    assert '4 images to train on, 2 to validate, 1 class: fruit (6)' in printed
    assert '## Strategies on fruit' in printed and '- 1 of 3 runs are done.' in printed
