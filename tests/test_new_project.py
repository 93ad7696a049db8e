"""tools/new_project.py: from folders in three formats, good and bad, to configs that train."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
import yaml
from mmdet.registry import DATASETS
from mmengine.config import Config
from test_tools import ROOT, TOOLS, call_tool, scalars
from tiny_models import build, loss_of

sys.path.insert(0, str(TOOLS))
import new_project  # noqa: E402
from project_data import describe_data, inspect  # noqa: E402
from study_data import read_folder  # noqa: E402
from study_file import StudyError  # noqa: E402

WIDTH, HEIGHT = 96, 64
NAMES = ['red pear', 'груша', '梨']
COLORS = [(40, 40, 220), (40, 220, 40), (220, 60, 40)]


def boxes_of(index):
    """Labels and boxes (x, y, width, height) in pixels of an image; whole numbers, which all formats keep."""
    return [(label, (4 + index + 28 * label, 10 + 2 * label, 24, 30 - 4 * label)) for label in range(3)]


def draw(path, index):
    image = np.random.default_rng(index).integers(100, 140, (HEIGHT, WIDTH, 3), np.uint8)
    for label, (x, y, width, height) in boxes_of(index):
        cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), COLORS[label], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, image)[1].tofile(path)


def yolo_line(label, box):
    x, y, width, height = box
    shares = (x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT
    return f'{label} ' + ' '.join(f'{share:.8f}' for share in shares) + '\n'


def write_yolo(folder, count=10, where='{}', names=NAMES):
    """A YOLO folder; ``where`` holds the place of a file in images and in labels."""
    for index in range(count):
        draw(folder / where.format('images') / f'фото {index}.png', index)
        label = folder / where.format('labels') / f'фото {index}.txt'
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(''.join(yolo_line(*pair) for pair in boxes_of(index)))
    if names:
        (folder / 'data.yaml').write_text(json.dumps(dict(names=names, nc=len(names))), encoding='utf-8')
    return folder


def write_voc(folder, count=10):
    (folder / 'Annotations').mkdir(parents=True)
    for index in range(count):
        draw(folder / 'JPEGImages' / f'фото {index}.png', index)
        objects = ''
        for label, (x, y, width, height) in boxes_of(index):
            corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + width + 1, y + height + 1))
            box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
            objects += f'<object><name>{NAMES[label]}</name><bndbox>{box}</bndbox></object>'
        path = folder / 'Annotations' / f'фото {index}.xml'
        path.write_text(f'<annotation>{objects}</annotation>', encoding='utf-8')
    return folder


def write_coco(folder, count=10, more=(), names=NAMES):
    """A COCO folder; ``more`` are annotations (image, category, box) beside those of all images."""
    images, annotations = [], []
    for index in range(count):
        draw(folder / 'images' / f'фото {index}.png', index)
        images.append(dict(id=index, file_name=f'фото {index}.png', width=WIDTH, height=HEIGHT))
        annotations += [(index, label, box) for label, box in boxes_of(index)]
    annotations = [
        dict(id=number, image_id=image, category_id=label, bbox=list(box), area=box[2] * box[3], iscrowd=0)
        for number, (image, label, box) in enumerate([*annotations, *more])
    ]
    categories = [dict(id=label, name=name) for label, name in enumerate(names)]
    (folder / 'all.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return folder


def call(monkeypatch, capsys, *arguments):
    """What the tool prints."""
    monkeypatch.setattr(sys, 'argv', ['new_project.py', *map(str, arguments)])
    new_project.main()
    return capsys.readouterr().out


def written(out, split='train'):
    """Boxes by file name and class that a project learns or validates on."""
    content = json.loads((out / f'{split}.json').read_text())
    files = {image['id']: image['file_name'].split('/')[-1] for image in content['images']}
    classes = {category['id']: category['name'] for category in content['categories']}
    return {(files[a['image_id']], classes[a['category_id']]): a['bbox'] for a in content['annotations']}


@pytest.mark.slow
def test_yolo_folder_becomes_a_config_that_trains_by_the_last_line(tmp_path, monkeypatch, capsys):
    folder, out = write_yolo(tmp_path / 'мои груши 1'), tmp_path / 'new project'
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    lines = call(monkeypatch, capsys, folder, '--out', out, '--epochs', 2).splitlines()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before
    start, command = lines[-1].split(': ')
    assert start == 'Train, and evaluate every epoch'
    python, tool, config = shlex.split(command)
    assert python == 'python' and tool.endswith('tools/train.py')
    work_dir = tmp_path / 'work'
    options = [
        f'{split}_dataloader.{key}' for split in ('train', 'val') for key in ('num_workers=0', 'persistent_workers=0')
    ]
    options += ['model.test_cfg.score_thr=0.0', 'default_hooks.logger.interval=1']
    call_tool('train.py', config, '--work-dir', work_dir, options=options)
    assert [line['step'] for line in scalars(work_dir, 'coco/bbox_mAP')] == [1, 2]
    assert [line['lr'] for line in scalars(work_dir, 'lr')][-1] < 2e-3 / 2  # the schedule ends with the training
    evaluation = shlex.split(lines[-2].split(': ')[1])
    assert evaluation[1].endswith('tools/test.py') and evaluation[2] == config
    assert evaluation[3] == f'work_dirs/{Config.fromfile(config).filename.split("/")[-1][:-3]}/epoch_2.pth'
    call_tool('test.py', config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test', options=options[:4])
    dumped = next(work_dir.glob('*.py'))
    assert Config.fromfile(dumped).train_dataloader.dataset.metainfo.classes == tuple(NAMES)


def test_three_formats_of_the_same_boxes_give_the_same_project(tmp_path, monkeypatch, capsys):
    found = []
    for name, write in (('yolo', write_yolo), ('voc', write_voc), ('coco', write_coco)):
        call(monkeypatch, capsys, write(tmp_path / name), '--out', tmp_path / f'out_{name}')
        found.append([written(tmp_path / f'out_{name}', split) for split in ('train', 'val')])
    expected = {(f'фото {i}.png', NAMES[label]): list(map(float, box)) for i in range(10) for label, box in boxes_of(i)}
    for train, val in found:
        assert len(train) == 8 * 3 and len(val) == 2 * 3
        together = {**train, **val}
        assert together.keys() == expected.keys()
        assert all(together[key] == pytest.approx(expected[key], abs=2e-3) for key in expected)


def test_quotes_in_a_folder_are_no_end_of_a_string(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, capsys, write_yolo(tmp_path / "Anna's" / 'a "b" \'c\''), '--out', "Anna's/out")
    cfg = Config.fromfile("Anna's/out/a_b_c_gfl_tiny_soft.py")
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 8
    call(monkeypatch, capsys, tmp_path / "Anna's" / 'a "b" \'c\'')
    cfg = Config.fromfile('projects/a_b_c/a_b_c_gfl_tiny_soft.py')
    assert len(DATASETS.build(cfg.val_dataloader.dataset)) == 2


def test_config_loads_from_anywhere_and_holds_what_was_found(tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    call(monkeypatch, capsys, write_yolo(tmp_path / 'data'), '--out', out)
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile('out/data_gfl_tiny_soft.py')
    assert cfg.model.bbox_head.num_classes == 3 and cfg.model.bbox_head.type == 'uotod_mmdet.GFLHead'
    assert cfg.model.train_cfg.assigner == dict(type='uotod_mmdet.dense_soft')
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == cfg.param_scheduler[1].T_max + 1 == 150
    for split, count in (('train', 8), ('val', 2), ('test', 2)):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) == count and dataset.metainfo['classes'] == tuple(NAMES)
        item = dataset[0]
        assert item['inputs'].shape[1:] == (128 * HEIGHT // WIDTH, 128) and len(item['data_samples'].gt_instances) == 3
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(out / 'val.json')


@pytest.mark.slow
def test_full_size_config_takes_the_weights_of_mmdets_metafile_and_trains(tmp_path, monkeypatch, capsys):
    printed = call(monkeypatch, capsys, write_yolo(tmp_path / 'data'), '--out', tmp_path / 'out', '--full-size')
    assert 'GFL R50 from COCO weights' in printed and '12 epochs of 8 images' in printed
    cfg = Config.fromfile(tmp_path / 'out/data_gfl_r50_soft.py')
    metafile = Path(mmdet.__file__).parent / '.mim/configs/gfl/metafile.yml'
    if metafile.is_file():
        models = {model['Name']: model for model in yaml.safe_load(metafile.read_text())['Models']}
        assert cfg.load_from == models['gfl_r50_fpn_1x_coco']['Weights']
    assert cfg.model.bbox_head.num_classes == 3 and cfg.model.train_cfg.assigner.type == 'uotod_mmdet.dense_soft'
    assert cfg.optim_wrapper.optimizer.lr == 0.01 / 4 and cfg.param_scheduler[1].milestones == [8, 11]
    cfg.train_dataloader.dataset.pipeline[2].scale = (128, 128)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    items = [dataset[index] for index in range(2)]
    cfg.dump(tmp_path / 'dump.py')
    model = Config.fromfile(tmp_path / 'dump.py').model
    assert model == cfg.model
    loss = loss_of(build(model), {key: [item[key] for item in items] for key in ('inputs', 'data_samples')})
    assert torch.isfinite(loss)


def test_project_inside_the_checkout_inherits_by_relative_paths(tmp_path):
    data = inspect(write_yolo(tmp_path / 'data'))
    out = ROOT / 'work_dirs' / f'test_new_project_{tmp_path.name}'
    try:
        config = new_project.write_project(data, new_project.choose(data), out, 'dense_soft')
        assert "'../../configs/_base_/models/gfl_tiny.py'" in config.read_text()
        assert Config.fromfile(config).model.type == 'GFL'
    finally:
        shutil.rmtree(out)


@pytest.mark.parametrize(
    'where', ['{}/train', 'train/{}', '{}/train2017'], ids=['images/train', 'train/images', 'images/train2017']
)
def test_yolo_splits_are_those_of_the_folders(tmp_path, where):
    write_yolo(tmp_path, 6, where)
    write_yolo(tmp_path, 3, where.replace('train', 'val'))
    found = read_folder(tmp_path)  # as the studies read it
    assert {split: len(ids) for split, ids in found.splits.items()} == dict(train=6, val=3)
    assert len(found.annotations) == 27


def test_yolo_splits_may_be_lists_of_images(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / 'train.txt').write_text(''.join(f'./images/фото {index}.png\n' for index in range(7)))
    (tmp_path / 'val.txt').write_text(''.join(f'images/фото {index}.png\n' for index in range(7, 10)))
    assert {split: len(ids) for split, ids in read_folder(tmp_path).splits.items()} == dict(train=7, val=3)


@pytest.mark.parametrize(
    ('file', 'text', 'names'),
    [
        ('data.yaml', 'names:\n  0: a b\n  1: б\n  2: c\n', ['a b', 'б', 'c']),
        ('classes.txt', 'a b\nб\nc\n', ['a b', 'б', 'c']),
        ('obj.names', 'a b\nб\nc\n', ['a b', 'б', 'c']),
        (None, '', ['class 0', 'class 1', 'class 2']),
    ],
)
def test_yolo_classes_are_named_where_yolo_tools_name_them(tmp_path, file, text, names):
    write_yolo(tmp_path, names=None)
    if file:
        (tmp_path / file).write_text(text, encoding='utf-8')
    assert inspect(tmp_path).classes == names


def test_yolo_polygon_counts_as_its_box(tmp_path):
    write_yolo(tmp_path, 2)
    (tmp_path / 'labels/фото 0.txt').write_text('1 0.25 0.25 0.75 0.25 0.5 0.75\n')
    (polygon,) = [a for a in inspect(tmp_path).annotations if a['image_id'] == 1]
    assert polygon['bbox'] == [24, 16, 48, 32] and polygon['category'] == NAMES[1]


def test_table_counts_what_is_wrong_and_the_config_leaves_it_out(tmp_path, monkeypatch, capsys):
    x, y, width, height = boxes_of(0)[0][1]
    more = [
        (0, 0, (10, 10, 0, 5)),
        (0, 0, (10, 10, float('nan'), 5)),
        (1, 1, (200, 10, 20, 20)),
        (2, 2, (80, 40, 40, 20)),
        (0, 0, (x, y, width, height)),
    ]
    folder = write_coco(tmp_path / 'data', 12, more, [*NAMES, 'никогда'])
    content = json.loads((folder / 'all.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 11]
    content['images'][9].update(width=50, height=50)
    content['images'].append(dict(id=99, file_name='missing.png', width=9, height=9))
    (folder / 'all.json').write_text(json.dumps(content))
    (folder / 'images/фото 3.png').write_bytes(b'no image')
    (folder / 'images/фото 4.png').write_bytes(b'')
    shutil.copy(folder / 'images/фото 6.png', folder / 'images/фото 5.png')
    printed = call(monkeypatch, capsys, folder, '--out', tmp_path / 'out')
    assert 'data, COCO format: 10 images, 28 boxes, 3 classes' in printed
    for line in (
        "      3  images that do not open or are missing (left out): data: the image 'missing.png' is not",
        '      1  images whose size is not the one annotated (the real size counts): images/фото 9.png',
        '      2  images that are a copy of another (kept): images/фото 5.png, images/фото 6.png',
        '      1  images without objects (kept as background): images/фото 11.png',
        '      2  boxes without area (left out): images/фото 0.png, images/фото 0.png',
        '      1  boxes outside their image (left out): images/фото 1.png',
        '      1  boxes partly outside (cut to the image): images/фото 2.png',
        '      1  boxes that are there twice (one is kept): images/фото 0.png',
        '      1  classes without boxes (left out): никогда',
    ):
        assert line in printed
    files = [json.loads((tmp_path / 'out' / f'{split}.json').read_text()) for split in ('train', 'val')]
    boxes = sorted(a['bbox'] for content in files for a in content['annotations'])
    assert [80, 40, 16, 20] in boxes and len(boxes) == 28
    assert [category['name'] for category in files[0]['categories']] == NAMES
    assert {image['file_name']: image['width'] for content in files for image in content['images']}[
        'images/фото 9.png'
    ] == WIDTH


def test_image_in_both_splits_is_told(tmp_path):
    write_yolo(tmp_path, 4, '{}/train')
    write_yolo(tmp_path, 2, '{}/val')
    found = {problem.what: problem.where for problem in inspect(tmp_path).problems}
    assert found['images that are in train and val'] == ['images/val/фото 0.png', 'images/val/фото 1.png']


def test_images_of_a_third_split_are_told(tmp_path):
    for split, count in (('train', 4), ('val', 2), ('test', 3)):
        write_yolo(tmp_path, count, f'{{}}/{split}')
    data = inspect(tmp_path)
    assert {split: len(ids) for split, ids in data.splits.items()} == dict(train=4, val=2)
    assert '      3  images in neither train nor val (not used; a test split, say)' in describe_data(data)


def test_split_made_by_the_tool_never_changes_and_shares_the_classes(tmp_path):
    write_yolo(tmp_path, 10)
    for index in range(10):  # a class in two of ten images
        (tmp_path / f'labels/фото {index}.txt').write_text(yolo_line(int(index in (2, 7)), boxes_of(0)[0][1]))
    data = inspect(tmp_path)
    assert data.splits == inspect(tmp_path).splits and {k: len(v) for k, v in data.splits.items()} == dict(
        train=8, val=2
    )
    assert all({a['category'] for a in data.boxes_of(split)} == set(NAMES[:2]) for split in data.splits)


def data_with(tmp_path, image, side, count=2):
    """Folder of white images with boxes of one side."""
    for index in range(count):
        path = tmp_path / f'images/{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((image, image, 3), 255 - index % 200, np.uint8))
        label = tmp_path / f'labels/{index}.txt'
        label.parent.mkdir(exist_ok=True)
        label.write_text(f'0 0.5 0.5 {side / image} {side / image}\n')
    return inspect(tmp_path)


@pytest.mark.parametrize(
    ('image', 'side', 'scale', 'stride', 'smallest_anchor'),
    [
        (800, 200, 320, 8, (64, 80)),  # large boxes: the least scale will do
        (800, 35, 480, 8, (16, 40)),  # small ones: a larger one, so that they have 20 pixels
        (1600, 16, 640, 4, (12, 16)),  # tiny ones: the finest pyramid, too
        (96, 40, 128, 8, (40, 64)),  # images are hardly enlarged
    ],
)
def test_scale_and_anchors_follow_the_sizes_of_the_boxes(tmp_path, image, side, scale, stride, smallest_anchor):
    choice = new_project.choose(data_with(tmp_path, image, side))
    assert (choice.scale, choice.strides[0]) == (scale, stride)
    anchors = [choice.octave_base_scale * stride for stride in choice.strides]
    closest = min(anchors, key=lambda anchor: abs(np.log(anchor * image / side / scale)))
    assert smallest_anchor[0] <= closest <= smallest_anchor[1]


@pytest.mark.parametrize(('count', 'epochs', 'batch_size'), [(2, 150, 1), (400, 19, 4)])
def test_epochs_follow_the_number_of_images(tmp_path, count, epochs, batch_size):
    choice = new_project.choose(data_with(tmp_path, 32, 16, count))
    assert (choice.epochs, choice.batch_size) == (epochs, batch_size)


def pixels(folder):
    (folder / 'labels/фото 1.txt').write_text('0 42 25 24 30\n')


def no_yaml_class(folder):
    (folder / 'labels/фото 1.txt').write_text('3 0.5 0.5 0.25 0.25\n')


def words(folder):
    (folder / 'labels/фото 1.txt').write_text('0 0.5 0.5 0.25 0.25\nred 0.5 0.5 0.25 0.25\n')


def four_numbers(folder):
    (folder / 'labels/фото 1.txt').write_text('0 0.5 0.5 0.25\n')


def only_one(folder):
    for index in range(1, 10):
        (folder / f'images/фото {index}.png').unlink()


def none_opens(folder):
    for index in range(10):
        (folder / f'images/фото {index}.png').write_bytes(b'no image')


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def other_layout(folder):
    emptied(folder)
    draw(folder / 'pictures/a.png', 0)


def broken_json(folder):
    emptied(folder)
    (folder / 'train.json').write_text('{"images": [')


def box_of_three(folder):
    emptied(folder)
    write_coco(folder, 2, [(0, 0, (1, 2, 3, 4))])
    text = (folder / 'all.json').read_text()
    (folder / 'all.json').write_text(text.replace('[1, 2, 3, 4]', '[1, 2, 3]'))


def image_without_name(folder):
    emptied(folder)
    text = (write_coco(folder, 2) / 'all.json').read_text()
    (folder / 'all.json').write_text(text.replace('"file_name"', '"name"'))


def no_boxes(folder):
    for path in folder.glob('labels/*.txt'):
        path.write_text('')


def broken_yaml(folder):
    (folder / 'data.yaml').write_text('names: [a, b')


def classes_from_one(folder):
    (folder / 'data.yaml').write_text('names: {1: a, 2: b, 3: c}')


def labels_alone(folder):
    shutil.rmtree(folder / 'images')


def empty_split(folder):
    write_yolo(folder, 4, '{}/val')
    for path in folder.glob('labels/val/*.txt'):
        path.unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            pixels,
            'data: labels/фото 1.txt, line 1: 42 25 24 30 are no shares of the image, from 0 to 1. Are these pixels? '
            'Divide x and width by the width of the image, y and height by its height.',
        ),
        (
            no_yaml_class,
            'data: labels/фото 1.txt, line 1: the number of the class must be from 0 to 2, for red pear, груша, '
            '梨; got 3.',
        ),
        (
            words,
            "data: labels/фото 1.txt, line 2: 'red 0.5 0.5 0.25 0.25' is no box; a line is: number of the class, x and "
            'y of the centre, width, height, the last four in shares of the image.',
        ),
        (four_numbers, "data: labels/фото 1.txt, line 1: '0 0.5 0.5 0.25' is no box; a line is: number of the class"),
        (
            only_one,
            'data: one image can be used; training needs two at least, one to learn from and one to validate on.',
        ),
        (none_opens, "data: no image can be used; .* data: the image 'фото 0.png' cannot be read."),
        (emptied, 'data: the folder is empty; give one in COCO, Pascal VOC or YOLO format.'),
        (
            other_layout,
            'data: there are no annotations: neither Annotations/*.xml (Pascal VOC) nor labels/*.txt (YOLO) nor a '
            'train.json, annotations/*.json or instances_*.json (COCO) with images, annotations and categories.',
        ),
        (broken_json, 'data: train.json is no JSON (Expecting value: line 1 column 13 (char 12)).'),
        (
            box_of_three,
            'data: all.json is no COCO annotation file (not enough values to unpack (expected 4, got 3)). An image has '
            'id and file_name; an annotation image_id, category_id and bbox, four numbers in pixels: x, y, width, '
            'height.',
        ),
        (image_without_name, "data: all.json is no COCO annotation file ('file_name' is missing). An image has id and"),
        (no_boxes, 'data: no annotation holds a box of at least one pixel; there is nothing to learn.'),
        (broken_yaml, 'data: data.yaml is no YAML (while parsing a flow sequence'),
        (
            classes_from_one,
            'data: names of data.yaml must number the classes 0 to 2, as the labels do; got 1, 2, 3.',
        ),
        (
            labels_alone,
            'data: there are labels of YOLO, but no images in a folder named images, beside labels and built like it.',
        ),
        (
            empty_split,
            "data: no usable image of the split 'val' holds an object; fill it, or remove its file or folder, and the "
            'images are split by chance.',
        ),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_bad_folder_is_answered_in_a_sentence(tmp_path, monkeypatch, capsys, spoil, message):
    folder = write_yolo(tmp_path / 'data')
    spoil(folder)
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, capsys, folder, '--out', tmp_path / 'out')
    start, _, end = message.partition('.* ')
    assert start in str(ended.value) and end in str(ended.value)
    assert not (tmp_path / 'out').exists()


def test_missing_folder_and_project_that_is_there_are_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match='there is no folder .*nowhere; give one in COCO, Pascal VOC or YOLO format'):
        call(monkeypatch, capsys, tmp_path / 'nowhere')
    folder, out = write_yolo(tmp_path / 'data'), tmp_path / 'out'
    out.mkdir()
    with pytest.raises(SystemExit, match='--out: .*out is there already; give another folder, or --overwrite'):
        call(monkeypatch, capsys, folder, '--out', out)
    assert 'Written:' in call(monkeypatch, capsys, folder, '--out', out, '--overwrite')


def test_label_without_image_is_told(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / 'images/фото 3.png').unlink()
    (tmp_path / 'labels/classes.txt').write_text('\n'.join(NAMES))
    (missing,) = inspect(tmp_path).problems[0].where
    assert missing == f'{tmp_path.name}: labels/фото 3.txt has no image.'


def test_unreadable_image_still_stops_a_study(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / 'images/фото 0.png').write_bytes(b'no image')
    with pytest.raises(StudyError, match="the image 'фото 0.png' cannot be read"):
        read_folder(tmp_path)
