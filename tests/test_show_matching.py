"""The picture and the numbers of tools/show_matching.py."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hub import get_config
from test_sinkhorn import FIGURE_PLANS
from test_tools import draw_cells
from tiny_masks import tiny_config as mask_model
from tiny_models import (
    DENSE,
    MORE_QUERY_BASED,
    QUERY_BASED,
    shrink_backbone,
    tiny_config,
    use_small_language_model,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import show_matching  # noqa: E402


def matrices(text):
    """Named matrices of the printed text."""
    found, name = {}, None
    for line in text.splitlines():
        words = line.split()
        if words and words[0].isdigit() and name:
            found[name].append([float(word) for word in words[1:]])
        elif line and not line.startswith(' ') and 'Picture' not in line:
            name = line
            found[name] = []
    return {name: rows for name, rows in found.items() if rows}


def assert_is_a_picture(path):
    image = cv2.imread(str(path))
    assert image.shape[0] > 300 and image.shape[1] > 600
    assert image.std() > 20


def test_the_papers_example_is_printed_and_drawn(tmp_path, capsys):
    out = tmp_path / 'paper.png'
    assert show_matching.main(['--text', '--out', str(out)]) == 0
    found = matrices(capsys.readouterr().out)
    assert_is_a_picture(out)
    assert found['cost'][3] == [0.4, 0.65, 0.8]
    assert found['Hungarian'] == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    printed = {
        'balanced': found['BalancedSinkhorn: reg=0.05'],
        'unbalanced to ground truths': found['UnbalancedSinkhorn: reg=0.05, reg_pred=100.0, reg_target=0.01'],
        'unbalanced to predictions': found['UnbalancedSinkhorn: reg=0.05, reg_pred=0.01, reg_target=100.0'],
    }
    for name, plan in printed.items():
        for row, expected in zip(plan, FIGURE_PLANS[name][2]):
            assert row == pytest.approx(expected, abs=2e-5)


def test_a_detector_on_an_image_is_drawn(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs/color_boxes/gfl_tiny_sinkhorn.py")!r}\n'
        f"train_dataloader = dict(dataset=dict(size='mini', data_root={str(tmp_path / 'data')!r}))\n"
    )
    out = tmp_path / 'image.png'
    show_matching.main([str(config), '--text', '--out', str(out), '--strategies', 'SoftMinAssigner', 'OTAAssigner'])
    found = matrices(capsys.readouterr().out)
    assert_is_a_picture(out)
    assert set(found) == {'cost', 'UnbalancedSinkhorn', 'SoftMin', 'OTA'}
    for row in found['UnbalancedSinkhorn']:
        assert sum(row) == pytest.approx(1, abs=0.06)  # reg_pred=None: every prediction gives all of itself
    assert len(found['cost']) == 20


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A data set of two images under COCO's names; the first one is empty."""
    root = tmp_path_factory.mktemp('photos')
    boxes = [[20, 30, 60, 50], [90, 10, 40, 90]]
    annotations = [
        dict(id=index + 1, image_id=1, category_id=index + 1, bbox=box, area=box[2] * box[3], iscrowd=0)
        for index, box in enumerate(boxes)
    ]
    images = [dict(id=number, file_name=f'{number}.png', width=160, height=128) for number in (0, 1)]
    for image in images:
        pixels = np.random.default_rng(image['id']).integers(0, 255, (128, 160, 3), dtype=np.uint8)
        cv2.imwrite(str(root / image['file_name']), pixels)
    categories = [dict(id=index, name=name) for index, name in enumerate(CocoDataset.METAINFO['classes'], start=1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'train.json').write_text(json.dumps(content))
    return root


def on_photos(cfg, photos, path, scale=(160, 128)):
    """Write a config that trains on the two images."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=scale, keep_ratio=False),
        dict(type='PackDetInputs'),
    ]
    dataset = dict(
        type='CocoDataset', data_root=str(photos), ann_file='train.json', data_prefix=dict(img=''), pipeline=pipeline
    )
    if 'language_model' in cfg:  # the prompt is the classes
        pipeline[-1]['meta_keys'] = 'img_path', 'img_shape', 'ori_shape', 'scale_factor', 'text', 'custom_entities'
        dataset['return_classes'] = True
    Config(dict(model=cfg, train_dataloader=dict(dataset=dataset), default_scope='mmdet')).dump(path)
    return str(path)


def shown(capsys, *arguments):
    """The printed matrices; the picture is laid out and not rendered, which takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda *args, **kwargs: None)
        show_matching.main([*arguments, '--text', '--rows', '4'])
    return matrices(capsys.readouterr().out)


OF_BOXES = sorted(path for path in (ROOT / 'configs/coco').glob('*.py') if not path.name.startswith('mask2former'))


def test_a_model_of_masks_is_refused(tmp_path, photos):
    model = mask_model('Mask2FormerHead')
    with pytest.raises(SystemExit, match='Mask2Former has no bbox_head with an assigner: its matching cannot be shown'):
        show_matching.main([str(on_photos(model, photos, tmp_path / 'config.py', (64, 64))), '--text'])


@pytest.mark.parametrize('path', OF_BOXES, ids=lambda path: path.stem)
def test_each_coco_config_is_shown(tmp_path, capsys, photos, path):
    model = Config.fromfile(path).model
    shrink_backbone(model)
    if 'num_queries' in model and model.type == 'DINO':
        model.num_queries = 50
    if 'language_model' in model:
        use_small_language_model(model)
        model.num_queries = 50
    scale = (300, 300) if model.bbox_head.type.endswith('SSDHead') else (160, 128)
    config = on_photos(model, photos, tmp_path / 'config.py', scale)
    found = shown(capsys, config)
    name = model.train_cfg.assigner.type.split('.')[-1].removesuffix('Assigner')
    plan = next(rows for title, rows in found.items() if title.split(':')[0] == name)
    assert len(plan) == 4 and all(len(row) == 3 for row in plan)
    assert sum(row[0] + row[1] for row in plan) > 0


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/color_boxes').glob('*.py')), ids=lambda path: path.stem)
def test_each_color_boxes_config_is_shown(tmp_path_factory, tmp_path, capsys, path):
    data = tmp_path_factory.getbasetemp() / 'color_boxes'
    options = ['--cfg-options', f'train_dataloader.dataset.data_root={data}', 'train_dataloader.dataset.size=mini']
    found = shown(capsys, str(path), *options)
    cost, plan, *others = found.values()
    assert len(cost) == len(plan) == 4 and len(others) == 2
    assert sum(sum(row[:-1]) for row in plan) > 0
    assert all(sum(row) == pytest.approx(1, abs=0.1) for rows in others for row in rows)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/bccd').glob('*.py')), ids=lambda path: path.stem)
def test_each_bccd_config_is_shown(tmp_path, capsys, monkeypatch, path):
    draw_cells(tmp_path / 'cells')
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'cells'))
    found = shown(capsys, str(path))
    assert len(next(iter(found.values()))) == 4


OUR_HEADS = [*(name for name in DENSE), *QUERY_BASED, *MORE_QUERY_BASED]


@pytest.mark.parametrize(
    ('head', 'assigner'),
    [
        *((head, 'ours') for head in OUR_HEADS),
        *((head, 'mmdet') for head in ('GFLHead', 'RetinaHead', 'DETRHead', 'DINOHead')),
    ],
)
def test_each_head_of_ours_shows_the_plan_that_it_trains_on(tmp_path, photos, head, assigner):
    model = tiny_config(head, dict(type='uotod_mmdet.HungarianAssigner', match_costs=[]))
    costs = [dict(type='FocalLossCost'), dict(type='IoUCost', iou_mode='giou')]
    if model.bbox_head.get('loss_cls', {}).get('type') == 'CrossEntropyLoss':
        costs[0] = dict(type='ClassificationCost')
    if assigner == 'ours':
        model.train_cfg.assigner.match_costs = costs
    elif head in DENSE:
        model.train_cfg.assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, ignore_iof_thr=-1)
    else:
        model.train_cfg.assigner = dict(type='HungarianAssigner', match_costs=costs)
    model.bbox_head.type = f'uotod_mmdet.{model.bbox_head.type}'
    model.bbox_head.num_classes = 80
    scale = (300, 300) if head == 'SSDHead' else (160, 128)
    cfg = Config.fromfile(on_photos(model, photos, tmp_path / 'config.py', scale))
    outputs = []
    built = show_matching.build_detector(cfg, None)
    built.bbox_head.register_forward_hook(lambda module, args, output: outputs.append(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show_matching, 'build_detector', lambda cfg, checkpoint: built)
        _, record, _ = show_matching.matching_of_an_image(cfg, None, None)
    batch, plan = record.batch, record.plan
    scores, num_gts = outputs[0][0], 2
    if head in DENSE:
        scores = built.bbox_head.flatten(scores, built.bbox_head.cls_out_channels)[0]
        scores = scores if batch.pred_mask is not None else scores[: len(plan)]
    else:
        dense = 75 if head == 'DDQDETRHead' else 0  # its auxiliary queries, last
        scores = scores[-1, 0][: len(scores[-1, 0]) - dense][
            -len(plan) :
        ]  # the last layer, after its denoising queries
    assert plan.shape == (len(scores), num_gts + 1)
    if batch.scores is not None:
        torch.testing.assert_close(batch.scores[0], scores, rtol=0, atol=0)
    if assigner == 'ours':
        torch.testing.assert_close(plan, built.bbox_head.assigner.match_batch(batch).plan[0])
    assert set(plan.unique().tolist()) <= {0, 1} and (plan[:, :2].sum(0) >= 1).all()


def test_the_image_without_objects_is_passed_over_unless_it_is_asked_for(tmp_path, capsys, photos):
    model = tiny_config('GFLHead', dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='IoUCost')))
    config = on_photos(model, photos, tmp_path / 'config.py')
    first = shown(capsys, config)
    assert first == shown(capsys, config, '--index', '1')
    with pytest.raises(SystemExit, match='image 0 does not hold an object to match; choose another --index'):
        show_matching.main([config, '--index', '0'])


def test_what_cannot_be_shown_is_named(tmp_path, photos):
    paper = ['--out', str(tmp_path / 'no.png'), '--strategies']
    for strategy, message in (
        ('HungarianAsigner', "did you mean 'HungarianAssigner'"),
        ('BalancedSinkhornAssigner:reg', 'after the type write argument=value'),
        ('BalancedSinkhornAssigner:reg=', 'after the type write argument=value'),
        ('BalancedSinkhornAssigner:reg=big', 'after the type write argument=value'),
        ('BalancedSinkhornAssigner:regg=1', "has no argument 'regg'; did you mean 'reg'"),
        ('BalancedSinkhornAssigner:reg=-1', 'reg must be'),
    ):
        with pytest.raises(SystemExit, match=f'--strategies {strategy}: .*{message}'):
            show_matching.main([*paper, strategy])
    (tmp_path / 'file').write_text('')
    for out in ('picture.nothing', 'file/picture.png'):
        with pytest.raises(SystemExit, match=f'--out .*{out} cannot be written'):
            show_matching.main(['--out', str(tmp_path / out), '--strategies', 'HungarianAssigner'])
    with pytest.raises(SystemExit, match='config: nowhere.py is not there'):
        show_matching.main(['nowhere.py'])

    model = tiny_config('GFLHead', dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='IoUCost')))
    config = on_photos(model, photos, tmp_path / 'config.py')
    with pytest.raises(SystemExit, match=r'--index must be in \[0, 2\), got 999'):
        show_matching.main([config, '--index', '999'])
    with pytest.raises(SystemExit, match='--checkpoint: nowhere.pth is not there'):
        show_matching.main([config, '--checkpoint', 'nowhere.pth'])
    torch.save(dict(state_dict={}), tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='--checkpoint .*is of another model than the config'):
        show_matching.main([config, '--checkpoint', str(tmp_path / 'other.pth')])
    two_stage = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    two_stage.backbone.init_cfg = None
    with pytest.raises(SystemExit, match='FasterRCNN has no bbox_head with an assigner'):
        show_matching.main([on_photos(two_stage, photos, tmp_path / 'two_stage.py')])
