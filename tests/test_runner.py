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

pytestmark = pytest.mark.slow


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
