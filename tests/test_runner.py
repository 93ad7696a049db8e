"""Runs by mmengine's Runner: pictures of runs by epoch and by iteration, and data that fit their config."""

import sys

import pytest
from test_tools import TOOLS, draw_cells, scalars
from tiny_runs import (
    BY_ITERATION,
    NAMES,
    seconds,
    tiny_run,
    train,
    validations,
    warnings_of,
    without_validation,
    write_annotations,
)

sys.path.insert(0, str(TOOLS))
<<<<<<< HEAD
=======
import show_run  # noqa: E402

pytestmark = pytest.mark.slow

NAMES = ('red', 'green', 'blue', 'grey')
SOFT = dict(
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=[
        dict(type='IoUCost', iou_mode='giou'),
        dict(type='uotod_mmdet.PriorCenterCost'),
        dict(type='FocalLossCost'),
    ],
    reg=0.1,
)
SCHEDULE = dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.2, stop=0.05)


def write_annotations(root, name, labels=(0, 1, 2, 3, 0, 1), names=NAMES, box=(8, 8, 40, 32)):
    """Six images of one object each, in COCO's format; ids are those of the category's place."""
    images = [dict(id=index, file_name=f'{index}.png', width=64, height=64) for index in range(len(labels))]
    annotations = [
        dict(id=index + 1, image_id=index, category_id=label + 1, bbox=list(box), area=box[2] * box[3], iscrowd=0)
        for index, label in enumerate(labels)
    ]
    categories = [dict(id=index, name=name) for index, name in enumerate(names, start=1)]
    (root / name).write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with six images of 64 x 64 and their annotations."""
    root = tmp_path_factory.mktemp('data')
    write_annotations(root, 'train.json')
    for index in range(6):
        cv2.imwrite(str(root / f'{index}.png'), np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8))
    return root


def tiny_run(data, **changes):
    """A config, as a dict: three iterations an epoch, validation of all images."""
    model = tiny_config('GFLHead', SOFT)
    model.bbox_head.type = 'uotod_mmdet.GFLHead'
    model.bbox_head.loss_cls.type = 'uotod_mmdet.QualityFocalLoss'
    model.bbox_head.loss_dfl.type = 'uotod_mmdet.DistributionFocalLoss'
    model.bbox_head.norm_cfg = dict(type='BN')  # GroupNorm cannot normalise a single pixel
    model.test_cfg.score_thr = 0.0
    load, annotations = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    dataset = dict(
        type='CocoDataset',
        data_root=str(data),
        ann_file='train.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=NAMES),
    )
    loader = dict(batch_size=2, num_workers=0)
    train = dict(**dataset, pipeline=[load, annotations, dict(type='PackDetInputs')])
    val = dict(**dataset, test_mode=True)
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    val['pipeline'] = [load, resize, annotations, dict(type='PackDetInputs', meta_keys=meta_keys)]
    cfg = dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=dict(dataset=train, sampler=dict(type='DefaultSampler', shuffle=True), **loader),
        val_dataloader=dict(dataset=val, sampler=dict(type='DefaultSampler', shuffle=False), **loader),
        val_evaluator=dict(type='CocoMetric', ann_file=str(data / 'train.json'), metric='bbox'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
        val_cfg=dict(type='ValLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', save_optimizer=False)
        ),
        log_processor=dict(type='LogProcessor', window_size=1),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),
        randomness=dict(seed=0),
    )
    cfg.update(
        test_dataloader=cfg['val_dataloader'], test_evaluator=cfg['val_evaluator'], test_cfg=dict(type='TestLoop')
    )
    cfg = Config(cfg)
    cfg.merge_from_dict(copy.deepcopy(changes))
    return cfg


BY_ITERATION = {
    'train_cfg': dict(type='IterBasedTrainLoop', _delete_=True, max_iters=6, val_interval=2),
    'train_dataloader.sampler.type': 'InfiniteSampler',
}


def without_validation(cfg):
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[name] = None
    return cfg


def train(cfg, work_dir, *flags, name='config.py'):
    """Train by tools/train.py in this process."""
    work_dir.mkdir(exist_ok=True)
    path = work_dir.parent / f'{work_dir.name}_{name}'
    cfg.dump(path)
    call_tool('train.py', path, '--work-dir', work_dir, *flags)
    return work_dir


def warnings_of(work_dir):
    return [line for log in logs(work_dir) for line in log.splitlines() if ' - WARNING - ' in line]


@pytest.mark.parametrize(
    ('loop', 'expected'), [({}, [0.2] * 3 + [0.05] * 3), (BY_ITERATION, np.linspace(0.2, 0.05, 6))]
)
def test_a_schedule_moves_as_the_training_loop_counts(tmp_path, data, loop, expected):
    cfg = without_validation(tiny_run(data, custom_hooks=[SCHEDULE], **loop))
    work_dir = train(cfg, tmp_path / 'run')
    np.testing.assert_allclose([line['reg'] for line in scalars(work_dir, 'reg')], expected)
    assert not any('AssignerScheduleHook' in line for line in warnings_of(work_dir))


def test_iterations_are_counted_in_a_loop_of_epochs_where_the_schedule_says_so(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, by_epoch=False, begin=1, end=4)]))
    values = [line['reg'] for line in scalars(train(cfg, tmp_path / 'run'), 'reg')]
    np.testing.assert_allclose(values, [0.2, 0.2, 0.125, 0.05, 0.05, 0.05])


def test_a_schedule_by_epoch_in_a_loop_of_iterations_is_refused(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, by_epoch=True)], **BY_ITERATION))
    with pytest.raises(ValueError, match=r'by_epoch=True for reg, but IterBasedTrainLoop .* by_epoch=False.* 6\)'):
        train(cfg, tmp_path / 'run')


@pytest.mark.parametrize(
    ('given', 'ends_at'), [(dict(begin=1, end=4), '0.2'), (dict(begin=5), '0.2'), (dict(end=3), '0.125')]
)
def test_a_schedule_beyond_the_training_says_where_it_ends(tmp_path, data, given, ends_at):
    work_dir = train(without_validation(tiny_run(data, custom_hooks=[dict(SCHEDULE, **given)])), tmp_path / 'run')
    (warning,) = [line for line in warnings_of(work_dir) if 'AssignerScheduleHook' in line]
    assert f'beyond the 2 epochs of the training: reg ends at {ends_at} instead of 0.05' in warning
    assert scalars(work_dir, 'reg')[-1]['reg'] == pytest.approx(float(ends_at))


def test_a_run_resumed_for_more_epochs_has_the_schedule_of_the_longer_run(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[SCHEDULE]))
    work_dir = train(cfg, tmp_path / 'run')
    cfg.train_cfg.max_epochs = 4
    train(cfg, work_dir, '--resume')
    values = [line['reg'] for line in scalars(work_dir, 'reg')]
    np.testing.assert_allclose(values, [0.2] * 3 + [0.05] * 3 + [0.1] * 3 + [0.05] * 3)


def validations(work_dir):
    """What tools/show_run.py puts on its axis: the unit, and place and seconds of each validation, which tell it."""
    run = show_run.read_run(work_dir)
    return run.unit, [(f'{place:g}', line['time']) for place, line in run.val.items()]


def seconds(work_dir):
    return [line['time'] for line in scalars(work_dir, 'coco/bbox_mAP')]


@pytest.mark.parametrize(('interval', 'by_epoch'), [(1, True), (5, True), (3, False)])
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
>>>>>>> wip-habits


def test_show_run_joins_a_resumed_run_by_iteration(tmp_path, data):
    cfg = tiny_run(data, **BY_ITERATION)
    cfg.default_hooks.checkpoint.update(interval=4, by_epoch=False)
    work_dir = train(cfg, tmp_path / 'run')  # its iterations 5 and 6 are done again
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_4.pth'))
    cfg.train_cfg.max_iters = 8
    train(cfg, work_dir, '--resume')
    times = seconds(work_dir)
    assert validations(work_dir) == ('iteration', list(zip('2468', [*times[:2], *times[3:]])))
    train(cfg, work_dir)  # a fresh start
    assert validations(work_dir) == ('iteration', list(zip('2468', seconds(work_dir)[-4:])))


def test_show_run_of_a_run_by_epoch_whose_metrics_are_logged_by_iteration(tmp_path, data):
    cfg = tiny_run(data)
    cfg.default_hooks.logger.update(interval=2, log_metric_by_epoch=False)
    work_dir = train(cfg, tmp_path / 'run')
    assert validations(work_dir) == ('epoch', list(zip('12', seconds(work_dir))))


def test_show_run_of_epochs_resumed_as_iterations_counts_iterations(tmp_path, data):
    work_dir = train(tiny_run(data), tmp_path / 'run')
    assert validations(work_dir)[0] == 'epoch'
    cfg = tiny_run(data, **BY_ITERATION)
    cfg.train_cfg.max_iters = 8
    train(cfg, work_dir, '--resume')
    assert validations(work_dir) == ('iteration', list(zip('368', seconds(work_dir))))


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('filtered', [False, True])
def test_a_forgotten_metainfo_stops_training_with_both_lists_of_names(tmp_path, data, wrapped, filtered):
    cfg = without_validation(tiny_run(data))
    del cfg.train_dataloader.dataset['metainfo']
    if filtered:  # mmengine fails on a data set without images before any hook is called
        cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    if wrapped:
        inner = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner])
        )
    with pytest.raises(ValueError) as error:
        train(cfg, tmp_path / 'run')
    message = str(error.value)
    assert 'no annotation belongs to a class of metainfo' in message and 'train.json' in message
    assert "'person', 'bicycle'" in message and '60 more (80 in all)' in message
    assert "metainfo=dict(classes=('red', 'green', 'blue', 'grey'))" in message and 'num_classes=4' in message
    assert not scalars(tmp_path / 'run', 'loss')


def fit_warnings(work_dir):
    return [line for line in warnings_of(work_dir) if 'CocoDataset (' in line or 'XMLDataset (' in line]


def run_with_classes(data, tmp_path, classes, **changes):
    changes = {'train_dataloader.dataset.metainfo': dict(classes=classes), 'train_cfg.max_epochs': 1, **changes}
    return fit_warnings(train(without_validation(tiny_run(data, **changes)), tmp_path / 'run'))


def test_a_misspelt_class_is_warned_of_with_both_names(tmp_path, data):
    misspelt, left_out, shifted = run_with_classes(data, tmp_path, ('red', 'gren', 'blue', 'grey'))
    assert "'gren' may be meant to be 'green'" in misspelt and "Classes without annotation: 'gren'" in misspelt
    assert '2 annotations are left out' in left_out and "'green'" in left_out
    assert "order of the annotation file: 'red', 'blue', 'grey'. metainfo names them 'red', 'gren'" in shifted


def test_classes_in_another_order_than_in_the_file_are_warned_of(tmp_path, data):
    (warning,) = run_with_classes(data, tmp_path, ('grey', 'red', 'green', 'blue'))
    assert "'red', 'green', 'blue', 'grey'. metainfo names them 'grey', 'red'" in warning


def test_classes_that_fit_are_not_warned_of(tmp_path, data):
    assert run_with_classes(data, tmp_path, NAMES) == []


def test_a_rare_class_without_annotation_is_no_fault(tmp_path, data):
    write_annotations(data, 'rare.json', labels=(0, 1, 2, 0, 1, 2))
    assert run_with_classes(data, tmp_path, NAMES, **{'train_dataloader.dataset.ann_file': 'rare.json'}) == []


@pytest.mark.parametrize(
    ('box', 'labels', 'message'),
    [
        ((0.1, 0.1, 0.5, 0.5), (0, 1), '2 annotations belong to classes of metainfo .* smaller than a pixel'),
        ((8, 8, 40, 32), (), 'there is no annotation in it. Check ann_file'),
    ],
)
def test_a_data_set_without_usable_objects_stops_training(tmp_path, data, box, labels, message):
    write_annotations(data, 'empty.json', labels=labels, box=box)
    changes = {'train_dataloader.dataset.ann_file': 'empty.json'}
    with pytest.raises(ValueError, match=f'holds no image with an object to learn.*{message}'):
        train(without_validation(tiny_run(data, **changes)), tmp_path / 'run')


def test_fewer_images_than_a_batch_are_no_training(tmp_path, data):
    cfg = without_validation(tiny_run(data, **{'train_dataloader.batch_size': 8, 'train_dataloader.drop_last': True}))
    with pytest.raises(ValueError, match='6 images, fewer than batch_size=8, and drop_last=True leaves no batch'):
        train(cfg, tmp_path / 'run')


def test_the_head_and_the_data_set_agree_on_the_number_of_classes(tmp_path, data):
    few = without_validation(tiny_run(data, **{'model.bbox_head.num_classes': 3}))
    with pytest.raises(ValueError, match='num_classes=3 of bbox_head .* 4 classes.* Write num_classes=4'):
        train(few, tmp_path / 'few')
    many = without_validation(tiny_run(data, **{'model.bbox_head.num_classes': 80, 'train_cfg.max_epochs': 1}))
    (warning,) = [line for line in warnings_of(train(many, tmp_path / 'many')) if 'num_classes' in line]
    assert 'Write num_classes=4 into bbox_head' in warning


@pytest.mark.parametrize('classes', [('RBC', 'WBC', 'Platelet'), ('rbc', 'wbc')])
def test_voc_names_are_compared_with_those_in_the_xml_files(tmp_path, data, classes):
    draw_cells(tmp_path / 'cells')
    changes = {
        'train_dataloader.dataset': dict(
            _delete_=True,
            type='XMLDataset',
            data_root=str(tmp_path / 'cells'),
            ann_file='ImageSets/Main/trainval.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=classes),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='Resize', scale=(64, 64)),
                dict(type='PackDetInputs'),
            ],
        ),
        'train_dataloader.drop_last': True,
        'train_cfg.max_epochs': 1,
        'model.bbox_head.num_classes': len(classes),
    }
    cfg = without_validation(tiny_run(data, **changes))
    if classes[0] == 'rbc':
        with pytest.raises(ValueError, match=r"no annotation belongs.*metainfo=dict\(classes=\('RBC', 'WBC'\)\)"):
            train(cfg, tmp_path / 'run')
    else:
        assert not fit_warnings(train(cfg, tmp_path / 'run'))  # WBC is annotated and Platelet rare


def test_the_hook_of_the_config_is_not_added_twice(tmp_path, data):
    cfg = without_validation(tiny_run(data, custom_hooks=[dict(type='uotod_mmdet.hooks.DatasetFitHook')]))
    (dumped,) = train(cfg, tmp_path / 'run').glob('*.py')
    assert dumped.read_text().count('DatasetFitHook') == 1
