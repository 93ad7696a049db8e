"""What mmdet and mmengine let a user do works with our classes as with theirs: the list.

The ways of writing a config and of reading it back, both training loops, box types, dtypes of labels and boxes, images
with and without objects, and arguments for each class.
"""

import copy
import subprocess
import sys

import mmdet.models.losses as mmdet_losses
import mmdet.models.task_modules as mmdet_tasks
import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners.match_cost import ClassificationCost, IoUCost
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, register_box, register_box_converter
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from test_fields import build, corners
from test_mmdet_assigners import ARGUMENTS, COSTS, head_with
from test_mmdet_assigners import losses as losses_of
from test_plan_heads import ground_truths, head_config
from test_tools import call_tool, scalars
from tiny_runs import BY_ITERATION, seconds, tiny_run, train, validations, warnings_of, without_validation

import uotod_mmdet
from uotod_mmdet import assigners, heads, losses
from uotod_mmdet.costs import batch_cost, make_batch

# Every way of writing a config, what a Runner writes of a config, and both training loops.


SCHEDULE = dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.2, stop=0.05)


@pytest.mark.parametrize(
    ('loop', 'expected'), [({}, [0.2] * 3 + [0.05] * 3), (BY_ITERATION, np.linspace(0.2, 0.05, 6))]
)
@pytest.mark.slow
def test_a_schedule_moves_as_the_training_loop_counts(tmp_path, data, loop, expected):
    cfg = without_validation(tiny_run(data, custom_hooks=[SCHEDULE], **loop))
    work_dir = train(cfg, tmp_path / 'run')
    np.testing.assert_allclose([line['reg'] for line in scalars(work_dir, 'reg')], expected)
    assert not any('AssignerScheduleHook' in line for line in warnings_of(work_dir))


@pytest.mark.slow
def test_iterations_are_counted_in_a_loop_of_epochs_where_the_schedule_says_so(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, by_epoch=False, begin=1, end=4)]))
    values = [line['reg'] for line in scalars(train(cfg, tmp_path / 'run'), 'reg')]
    np.testing.assert_allclose(values, [0.2, 0.2, 0.125, 0.05, 0.05, 0.05])


@pytest.mark.slow
def test_a_schedule_by_epoch_in_a_loop_of_iterations_is_refused(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, by_epoch=True)], **BY_ITERATION))
    with pytest.raises(ValueError, match=r'by_epoch=True for reg, but IterBasedTrainLoop .* by_epoch=False.* 6\)'):
        train(cfg, tmp_path / 'run')


@pytest.mark.parametrize(
    ('given', 'ends_at'), [(dict(begin=1, end=4), '0.2'), (dict(begin=5), '0.2'), (dict(end=3), '0.125')]
)
@pytest.mark.slow
def test_a_schedule_beyond_the_training_says_where_it_ends(tmp_path, data, given, ends_at):
    work_dir = train(without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, **given)])), tmp_path / 'run')
    (warning,) = [line for line in warnings_of(work_dir) if 'AssignerScheduleHook' in line]
    assert f'beyond the 2 epochs of the training: reg ends at {ends_at} instead of 0.05' in warning
    assert scalars(work_dir, 'reg')[-1]['reg'] == pytest.approx(float(ends_at))


@pytest.mark.slow
def test_a_run_resumed_for_more_epochs_has_the_schedule_of_the_longer_run(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[SCHEDULE]))
    work_dir = train(cfg, tmp_path / 'run')
    cfg.train_cfg.max_epochs = 4
    train(cfg, work_dir, '--resume')
    values = [line['reg'] for line in scalars(work_dir, 'reg')]
    np.testing.assert_allclose(values, [0.2] * 3 + [0.05] * 3 + [0.1] * 3 + [0.05] * 3)


@pytest.mark.parametrize(('interval', 'by_epoch'), [(1, True), (5, True), (3, False)])
@pytest.mark.slow
def test_show_run_counts_iterations_in_a_run_by_iteration(tmp_path, data, interval, by_epoch):
    cfg = tiny_run(data, **BY_ITERATION)
    cfg.train_cfg.max_iters = 7
    cfg.default_hooks.logger.update(interval=interval, log_metric_by_epoch=by_epoch)
    cfg.log_processor.by_epoch = by_epoch
    work_dir = train(cfg, tmp_path / 'run')
    rows = list(zip('2467', seconds(work_dir)))
    assert len(rows) == 4
    assert validations(work_dir) == ('iteration', rows)
    if interval == 5:
        lines = [line.split()[:2] for line in call_tool('show_run.py', work_dir, '--images', 1).splitlines()]
        at = lines.index(['iteration', 'bbox_mAP'])
        assert [words[:1] for words in lines[at + 1 : at + 5]] == [['2'], ['4'], ['6'], ['7']]


LAZY = """
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop
from mmdet.datasets import CocoDataset
from mmdet.models.losses import GIoULoss
from mmdet.models.task_modules import FocalLossCost, IoUCost

with read_base():
    from .base_config import *

from uotod_mmdet.assigners import HungarianAssigner, UnbalancedSinkhornAssigner, WeightedSumAssigner
from uotod_mmdet.costs import PriorCenterCost
from uotod_mmdet.heads import GFLHead
from uotod_mmdet.hooks import AssignerScheduleHook, DatasetFitHook
from uotod_mmdet.losses import DistributionFocalLoss, QualityFocalLoss

model.bbox_head.update(
    type=GFLHead,
    loss_cls=dict(type=QualityFocalLoss, use_sigmoid=True),
    loss_dfl=dict(type=DistributionFocalLoss, loss_weight=0.25),
    loss_bbox=dict(type=GIoULoss, loss_weight=2.0),
)
model.train_cfg.assigner = dict(
    type=WeightedSumAssigner,
    box_source='priors',
    match_costs=[dict(type=IoUCost, iou_mode='giou'), dict(type=PriorCenterCost), dict(type=FocalLossCost)],
    strategies=[dict(type=UnbalancedSinkhornAssigner, reg=0.1), dict(type=HungarianAssigner)],
)
custom_hooks = [dict(type=AssignerScheduleHook, param='reg', start=0.2, stop=0.05), dict(type=DatasetFitHook)]
"""


def write_config(way, data, folder):
    """The config of a short run, written in one of the ways that mmengine reads; returns its path."""
    cfg = without_validation(tiny_run(data, custom_hooks=[SCHEDULE]))
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint.save_optimizer = True
    if way in ('py', 'json', 'yaml'):
        cfg.dump(folder / f'config.{way}')
        return folder / f'config.{way}'
    cfg.dump(folder / 'base_config.py')
    path = folder / 'config.py'
    if way == 'base':
        path.write_text("_base_ = './base_config.py'\nmodel = dict(train_cfg=dict(assigner=dict(reg=0.15)))\n")
    elif way == 'lazy':
        path.write_text(LAZY)
    else:
        text = (folder / 'base_config.py').read_text().replace("'uotod_mmdet.", "'")
        path.write_text(f"{text}\ncustom_imports = dict(imports=['{way}'], allow_failed_imports=False)\n")
    return path


def classes_of(model):
    """Names of the classes of all modules, of the assigner and of its costs."""
    assigner = model.bbox_head.assigner
    parts = [*model.modules(), assigner, *assigner.match_costs, *getattr(assigner, 'strategies', [])]
    return [f'{type(part).__module__}.{type(part).__name__}' for part in parts]


@pytest.mark.parametrize('way', ['py', 'base', 'json', 'yaml', 'lazy', 'uotod_mmdet'])
@pytest.mark.slow
def test_a_config_written_in_this_way_trains_and_its_dump_resumes(tmp_path, data, way):
    path = write_config(way, data, tmp_path)
    work_dir = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
        if way == 'uotod_mmdet':  # names that mmdet has, too, need the prefix
            text = path.read_text()
            for name in ('GFLHead', 'QualityFocalLoss', 'DistributionFocalLoss'):
                text = text.replace(f"'{name}'", f"'uotod_mmdet.{name}'")
            path.write_text(text)
        call_tool('train.py', path, '--work-dir', work_dir)
        dumped = work_dir / path.name
        built, read_back = (MODELS.build(Config.fromfile(file).model) for file in (path, dumped))
        assert classes_of(built) == classes_of(read_back)
        ours = {name.rsplit('.', 1)[-1] for name in classes_of(built) if name.startswith('uotod_mmdet.')}
        assert {'GFLHead', 'QualityFocalLoss', 'DistributionFocalLoss', 'PriorCenterCost'} <= ours
        call_tool('train.py', dumped, '--work-dir', work_dir, '--resume', options=['train_cfg.max_epochs=2'])
    assert [line['step'] for line in scalars(work_dir, 'loss')] == [1, 2, 3, 4, 5, 6]
    values = [line['reg'] for line in scalars(work_dir, 'reg')]
    np.testing.assert_allclose(values, [0.2] * 3 + [0.05] * 3)
    epochs = [torch.load(work_dir / f'epoch_{epoch}.pth') for epoch in (1, 2)]
    before, after = (epoch['state_dict']['bbox_head.gfl_cls.weight'] for epoch in epochs)
    assert not torch.equal(before, after)


@pytest.mark.parametrize('scope', ['mmdet', None])
@pytest.mark.parametrize('as_path', [False, True])
def test_types_given_as_classes_or_as_their_paths_build_inside_our_constructors(scope, as_path):
    def kind(cls):  # a Runner writes the paths of classes into its work folder
        return f'{cls.__module__}.{cls.__qualname__}' if as_path else cls

    costs = [dict(type=kind(mmdet_tasks.FocalLossCost)), dict(type=kind(mmdet_tasks.IoUCost), iou_mode='giou')]
    strategies = [dict(type=kind(assigners.HungarianAssigner)), dict(type=kind(assigners.SoftMinAssigner))]
    assigner = dict(type=kind(assigners.WeightedSumAssigner), match_costs=costs, strategies=strategies)
    quality = dict(type=kind(losses.QualityFocalLoss), use_sigmoid=True)
    boxes = [dict(type=mmdet_losses.L1Loss), dict(type=mmdet_losses.GIoULoss)]  # mmengine finds no paths of these
    head = dict(
        type=kind(heads.DETRHead),
        num_classes=4,
        embed_dims=8,
        loss_cls=quality,
        loss_bbox=boxes[0],
        loss_iou=boxes[1],
        train_cfg=dict(assigner=assigner),
    )
    criterion = dict(
        type=kind(losses.DetectionLoss),
        loss_cls=quality,
        loss_bbox=boxes,
        assigner=assigner,
        bg_class_position='none',
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)())
        if scope:
            DefaultScope.get_instance('test', scope_name=scope)
        for registry in (MODELS, uotod_mmdet.registry.MODELS):
            for cfg in (head, criterion):
                built = registry.build(copy.deepcopy(cfg))
                assert type(built.loss_cls) is losses.QualityFocalLoss
                assert [type(part) for part in built.assigner.strategies] == [
                    assigners.HungarianAssigner,
                    assigners.SoftMinAssigner,
                ]
                assert [type(cost) for cost in built.assigner.match_costs] == [
                    mmdet_tasks.FocalLossCost,
                    mmdet_tasks.IoUCost,
                ]


def test_each_class_of_ours_is_found_by_its_paths():
    for registry in ('MODELS', 'TASK_UTILS', 'DATASETS', 'HOOKS'):
        ours = getattr(uotod_mmdet.registry, registry)
        for name, cls in ours.module_dict.items():
            for path in (cls.__module__, cls.__module__.rsplit('.', 1)[0]):
                assert ours.parent.get(f'{path}.{name}') is cls is ours.get(f'{path}.{name}')


@pytest.mark.slow
def test_init_detector_and_the_inferencer_find_what_was_trained(tmp_path, data):
    cfg = without_validation(tiny_run(data))
    cfg.train_cfg.max_epochs = 1
    work_dir = train(cfg, tmp_path / 'run')
    code = INFERENCE.format(config=next(work_dir.glob('*.py')), weights=work_dir / 'epoch_1.pth', image=data / '0.png')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    counts = done.stdout.splitlines()[-1].split()
    assert counts[0] == counts[1] == counts[2] != '0'


INFERENCE = """
from mmdet.apis import DetInferencer, inference_detector, init_detector

detector = init_detector('{config}', '{weights}', device='cpu')
found = inference_detector(detector, '{image}').pred_instances.bboxes
import uotod_mmdet
counts = [len(found)]
for model in (None, '{config}'):
    inferencer = DetInferencer(model, '{weights}', device='cpu', show_progress=False)
    counts.append(len(inferencer('{image}', no_save_vis=True)['predictions'][0]['bboxes']))
print(*counts)
"""


# Labels and boxes of every dtype and box type.


# A box type (x1, y1, width, height), whose columns mean something else than xyxy.
CornerSizeBoxes = type('CornerSizeBoxes', (BaseBoxes,), {'box_dim': 4, **dict.fromkeys(BaseBoxes.__abstractmethods__)})


@pytest.fixture(scope='module')
def corner_size_type():
    register_box('corner_size', CornerSizeBoxes)

    @register_box_converter('corner_size', 'hbox')
    def convert(boxes):
        return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)

    return lambda boxes: CornerSizeBoxes(torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize('cost', ['ClassificationCost', 'FocalLossCost', 'a subclass'])
def test_labels_of_every_integer_dtype_mean_the_same(dtype, cost):
    costs = [type('Subclass', (ClassificationCost,), {})()] if cost == 'a subclass' else dict(type=cost)
    assigner = build('HungarianAssigner', match_costs=costs)
    pred = InstanceData(bboxes=corners(9), scores=torch.randn(9, 5))
    gts = [InstanceData(bboxes=corners(3), labels=torch.tensor([1, 4, 2], dtype=kind)) for kind in (torch.int64, dtype)]
    expected, found = (assigner.assign(pred, gt, {}) for gt in gts)
    assert torch.equal(found.gt_inds, expected.gt_inds) and set(expected.gt_inds.tolist()) == {0, 1, 2, 3}
    assert found.labels.dtype == torch.int64 and torch.equal(found.labels, expected.labels)
    together = batch_cost(assigner.match_costs, make_batch([pred, pred], gts))
    assert torch.equal(together[0], together[1])


@pytest.mark.parametrize('head', ['uotod_mmdet.DETRHead', 'uotod_mmdet.DeformableDETRHead'])
def test_float_labels_of_an_image_without_objects_change_nothing(head):
    losses = {}
    for dtype in (torch.int64, torch.float32):
        config = dict(type=head, num_classes=4, embed_dims=32)
        assigner = dict(
            type='uotod_mmdet.HungarianAssigner', match_costs=[dict(type='FocalLossCost'), dict(type='IoUCost')]
        )
        config['train_cfg'] = dict(assigner=assigner)
        config['loss_cls'] = dict(type='FocalLoss', use_sigmoid=True)
        if 'Deformable' in head:
            config.update(share_pred_layer=True, num_pred_layer=2)
        torch.manual_seed(0)
        built = MODELS.build(config)
        torch.manual_seed(0)
        scores, boxes = torch.randn(2, 2, 10, 4), torch.rand(2, 2, 10, 4)
        gts = [
            InstanceData(bboxes=corners(2), labels=torch.tensor([1, 3])),
            InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=dtype)),
        ]
        losses[dtype] = built.loss_by_feat(
            scores, boxes, *([None, None] if 'Deformable' in head else []), gts, [dict(img_shape=(100, 100))] * 2
        )
    assert all(torch.equal(losses[torch.float32][name], value) for name, value in losses[torch.int64].items())


def test_labels_that_are_no_integers_are_named():
    pred = InstanceData(bboxes=corners(9), scores=torch.randn(9, 5))
    assigner = build('HungarianAssigner', match_costs=dict(type='IoUCost'))
    for labels, found in ((torch.tensor([1.0, 2]), 'float32'), (torch.tensor([True, False]), 'bool')):
        with pytest.raises(TypeError, match=rf'gt_instances.labels of image 0 .* integers.* got torch.{found}: .*long'):
            assigner.assign(pred, InstanceData(bboxes=corners(2), labels=labels), {})
    with pytest.raises(ValueError, match=r'gt_instances.labels of image 0 .* shape \(2,\).* got \(2, 5\)'):
        assigner.assign(pred, InstanceData(bboxes=corners(2), labels=torch.zeros(2, 5).long()), {})


COSTS_OF_BOXES = [
    dict(type='IoUCost'),
    dict(type='BBoxL1Cost', box_format='xywh'),
    dict(type='uotod_mmdet.LogIoUCost'),
    dict(type='uotod_mmdet.PriorCenterCost'),
    dict(type='uotod_mmdet.PriorIoUCost'),
    dict(type='uotod_mmdet.InsideGTCost'),
]


class OtherIoU(IoUCost):
    """Called one image at a time, as third-party costs are."""


@pytest.mark.parametrize('gt_dtype', [torch.float16, torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_boxes_of_every_dtype_are_compared_in_the_wider_one(dtype, gt_dtype):
    boxes, gt_boxes = corners(9), corners(3, seed=1)  # whole numbers up to 105, which each dtype holds
    meta = dict(img_shape=(100, 110))
    terms = [*map(TASK_UTILS.build, COSTS_OF_BOXES), OtherIoU()]
    gt = InstanceData(bboxes=gt_boxes.to(gt_dtype), labels=torch.tensor([0, 1, 2]))
    batch = make_batch([InstanceData(bboxes=boxes.to(dtype), priors=boxes.to(dtype))], [gt], [meta])
    found = batch_cost(terms, batch)
    wide = make_batch([InstanceData(bboxes=boxes.double(), priors=boxes.double())], [gt], [meta])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), batch_cost(terms, wide), rtol=1e-5, atol=1e-4)
    assigner = build('HungarianAssigner', match_costs=dict(type='IoUCost'))
    for name in ('bboxes', 'priors'):
        result = assigner.assign(InstanceData(**{name: boxes.to(dtype)}), gt, {}, InstanceData(bboxes=gt.bboxes))
        expected = assigner.assign(InstanceData(**{name: boxes}), InstanceData(bboxes=gt_boxes, labels=gt.labels), {})
        assert torch.equal(result.gt_inds.clamp(min=0), expected.gt_inds)
        torch.testing.assert_close(result.max_overlaps.float(), expected.max_overlaps)
    for term in terms[2:6]:  # ours, called directly
        one = term(InstanceData(bboxes=boxes.to(dtype), priors=boxes.to(dtype)), gt, meta)
        torch.testing.assert_close(one.double(), batch_cost([term], wide)[0], rtol=1e-5, atol=1e-4)


def test_scores_wider_than_boxes_are_compared_in_full():
    scores = torch.randn(9, 4, dtype=torch.float64)
    gt = InstanceData(bboxes=corners(3, seed=1), labels=torch.tensor([0, 1, 2]))
    term = TASK_UTILS.build(dict(type='ClassificationCost'))
    found = batch_cost([term], make_batch([InstanceData(bboxes=corners(9), scores=scores)], [gt]))
    assert torch.equal(found[0], -scores.softmax(-1)[:, :3])


@pytest.mark.parametrize('name', ['HungarianAssigner', 'BalancedSinkhornAssigner', 'ClosestTargetAssigner'])
@pytest.mark.parametrize('kind', ['HorizontalBoxes', 'another box type'])
def test_mmdets_box_types_are_read_wherever_boxes_come_in(name, kind, corner_size_type):
    wrap = HorizontalBoxes if kind == 'HorizontalBoxes' else corner_size_type
    boxes, gt_boxes, crowd = corners(20), corners(3, seed=1), corners(2, seed=2)
    terms = [*map(TASK_UTILS.build, COSTS_OF_BOXES), *([OtherIoU()] if kind == 'HorizontalBoxes' else [])]
    assigner = build(name, match_costs=terms, background_cost=-0.2)
    results, costs = [], []
    for form in (torch.Tensor.clone, wrap):
        pred = InstanceData(bboxes=form(boxes), priors=form(boxes + 2))
        gt = InstanceData(bboxes=form(gt_boxes), labels=torch.tensor([0, 1, 2]))
        ignored = InstanceData(bboxes=form(crowd))
        results.append(assigner.assign(pred, gt, dict(img_shape=(100, 100)), ignored))
        only_priors = InstanceData(priors=form(boxes))
        results.append(build(name, match_costs=terms[0]).assign(only_priors, gt, {}, ignored))
        batch = make_batch([pred], [gt], [dict(img_shape=(100, 100))], gt_instances_ignore=[ignored])
        costs += [assigner.match_batch(batch).plan, *(term(pred, gt)[None] for term in terms[2:6])]
    for found, expected in zip(results[2:], results):
        assert torch.equal(found.gt_inds, expected.gt_inds) and (expected.gt_inds == -1).any()
        assert torch.equal(found.max_overlaps, expected.max_overlaps) and expected.max_overlaps.max() > 0
    assert all(torch.equal(found, expected) for found, expected in zip(costs[len(costs) // 2 :], costs))


# Ground truths of every form, with our assigners and with mmdet's in our heads.


FORMS = {
    'box types': lambda gt: InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels),
    'float64 and int32': lambda gt: InstanceData(bboxes=gt.bboxes.double(), labels=gt.labels.int()),
    'float16 and uint8': lambda gt: InstanceData(bboxes=gt.bboxes.half(), labels=gt.labels.byte()),
    'int64 and int16': lambda gt: InstanceData(bboxes=gt.bboxes.long(), labels=gt.labels.short()),
    'float labels of no objects': lambda gt: gt if len(gt) else InstanceData(bboxes=gt.bboxes, labels=torch.zeros(0)),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('head, name', [('RetinaHead', 'MaxIoUAssigner'), ('DETRHead', 'HungarianAssigner')])
@pytest.mark.parametrize('prefix', ['', 'uotod_mmdet.'])
@pytest.mark.slow
def test_every_form_of_ground_truths_gives_the_losses_of_plain_tensors(head, name, prefix, form):
    if prefix:
        name = 'HungarianAssigner'
    model = head_with(head, dict(type=prefix + name, **ARGUMENTS[name]))
    gts, ignored, metas = ground_truths(0, with_ignored=True)
    for gt in gts:
        gt.bboxes = gt.bboxes.round()
    expected = losses_of(model, gts, ignored, metas)
    ignored = [InstanceData(bboxes=HorizontalBoxes(boxes.bboxes)) for boxes in ignored]
    found = losses_of(model, [FORMS[form](gt) for gt in gts], ignored, metas)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    nothing = losses_of(model, [FORMS[form](gt[:0]) for gt in gts], ignored, metas)
    assert nothing['matched_mass'] == 0 and all(torch.isfinite(value).all() for value in nothing.values())


def test_float_labels_are_named():
    model = head_with('DETRHead', dict(type='HungarianAssigner', match_costs=COSTS))
    gts, ignored, metas = ground_truths(0, with_ignored=False)
    gts[0].labels = gts[0].labels.float()
    with pytest.raises(TypeError, match='gt_instances.labels of image 0 .* must hold integers.* got torch.float32'):
        losses_of(model, gts, ignored, metas)


@pytest.mark.parametrize('head', ['RetinaHead', 'DETRHead', 'SSDHead'])
@pytest.mark.parametrize('label', [5, -1])
def test_a_label_that_is_no_foreground_class_is_named(head, label):
    """num_classes=5: under a softmax label 5 is the background's column."""
    loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    changes = {} if head == 'SSDHead' else dict(loss_cls=loss_cls)
    model = MODELS.build({**head_config(head, **changes), 'type': f'uotod_mmdet.{head}'})
    gts, ignored, metas = ground_truths(0, with_ignored=False)
    gts[2].labels[0] = label
    with pytest.raises(ValueError, match=f'labels holds .*{label}.*num_classes=5.* 0 to 4: count labels from 0'):
        losses_of(model, gts, ignored, metas)


# Arguments for each class.


@pytest.mark.parametrize(
    'use_sigmoid, columns, what', [(True, 5, '5 classes'), (False, 6, '5 classes and the background')]
)
@pytest.mark.parametrize('head', ['RetinaHead', 'ATSSHead', 'ConditionalDETRHead'])
def test_class_weights_of_a_wrong_length_are_refused_with_the_right_one(head, use_sigmoid, columns, what):
    for length in (columns - 1, columns + 1, columns):
        loss = dict(type='CrossEntropyLoss', use_sigmoid=use_sigmoid, class_weight=[1.0] * length)
        config = {**head_config(head, loss_cls=loss), 'type': f'uotod_mmdet.{head}'}
        if length == columns:
            MODELS.build(config)
            continue
        with pytest.raises(ValueError, match=f'holds {length} .* give a list of {columns}, one for each of the {what}'):
            MODELS.build(config)
