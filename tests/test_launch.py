"""What the tools do to a config before the Runner sees it, and a quiet console: real configs, real runs."""

import argparse
import math

import pytest
from mmengine.config import Config
from test_tools import ROOT, call_tool, logs, scalars
from tiny_runs import tiny_run, without_validation

from uotod_mmdet.console import sentence_of
from uotod_mmdet.launch import add_common_arguments, load_config
from uotod_mmdet.registry import TASK_UTILS


def load(config, *options):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    return load_config(parser.parse_args([str(config), '--cfg-options', *options]))


def write(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    return path


def steps(cfg):
    """Of each scheduler: begin, end, T_max and milestones, where it has them."""
    names = 'begin', 'end', 'T_max', 'milestones'
    return [{name: each[name] for name in names if name in each} for each in cfg.param_scheduler]


def test_an_mmdet_schedule_of_twice_the_length_is_mmdets_own(tmp_path):
    once = write(tmp_path, "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")
    found = load(once, 'train_cfg.max_epochs=24')
    twice = write(tmp_path, "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'")
    expected = Config.fromfile(twice)
    assert steps(found) == steps(expected)
    assert steps(found)[1] == dict(begin=0, end=24, milestones=[16, 22])  # the warm-up before it counts iterations


@pytest.mark.parametrize(
    'config, length, expected',
    [
        # Warm-up of one epoch, then a cosine to the end.
        ('color_boxes/gfl_tiny_soft.py', 2, [dict(begin=0, end=1), dict(begin=1, end=2, T_max=1)]),
        ('color_boxes/gfl_tiny_soft.py', 24, [dict(begin=0, end=1), dict(begin=1, end=24, T_max=23)]),
        ('color_boxes/gfl_tiny_soft.py', 1, [dict(begin=0, end=1)]),
        # Warm-up by iteration; a cosine in the second half.
        ('coco/rtmdet_s_300e_soft.py', 20, [dict(begin=0, end=1000), dict(begin=10, end=20, T_max=10)]),
        # Warm-up of 5 epochs, a cosine whose T_max of 285 reaches beyond its 280 epochs, 15 epochs without change.
        (
            'coco/yolox_tiny_300e_soft.py',
            64,
            [dict(begin=0, end=5), dict(begin=5, end=61, T_max=57), dict(begin=61, end=64)],
        ),
    ],
)
def test_schedules_follow_the_length_of_training(config, length, expected):
    assert steps(load(ROOT / 'configs' / config, f'train_cfg.max_epochs={length}')) == expected


def test_a_schedule_of_the_assigner_follows_too_and_what_the_user_writes_stays(tmp_path):
    config = ROOT / 'configs/color_boxes/deformable_detr_tiny_soft.py'
    (hook,) = [each for each in Config.fromfile(config).custom_hooks if each.type.endswith('AssignerScheduleHook')]
    planned = Config.fromfile(config).train_cfg.max_epochs
    (moved,) = [
        each
        for each in load(config, f'train_cfg.max_epochs={2 * planned}').custom_hooks
        if each.type.endswith('AssignerScheduleHook')
    ]
    assert hook.end == 6 and abs(moved.end - 2 * hook.end) <= 1
    own = load(config, 'train_cfg.max_epochs=3', 'param_scheduler.0.end=2')
    assert steps(own)[1:] == steps(Config.fromfile(config))[1:] and own.param_scheduler[0].end == 2
    assert steps(load(config, 'randomness.seed=1')) == steps(Config.fromfile(config))


def test_a_schedule_by_iteration_follows_max_iters_alone(tmp_path):
    path = write(
        tmp_path,
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000)\n"
        "param_scheduler = dict(type='MultiStepLR', by_epoch=False, begin=0, milestones=[600, 900], gamma=0.1)",
    )
    assert load(path, 'train_cfg.max_iters=100').param_scheduler.milestones == [60, 90]


@pytest.mark.slow
def test_a_quiet_run_shows_training_alone_and_its_log_has_all(tmp_path, data):
    cfg = without_validation(tiny_run(data))
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.5, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=9, T_max=8, convert_to_iter_based=True),
    ]
    cfg.train_cfg.max_epochs = 9
    cfg.dump(tmp_path / 'config.py')
    work_dir = tmp_path / 'run'
    flags = tmp_path / 'config.py', '--quiet', '--work-dir', work_dir
    shown = call_tool('train.py', *flags, options=['train_cfg.max_epochs=2']).splitlines()
    assert 'max_epochs is 2, the config was made for 9' in shown[0]
    first = next(number for number, line in enumerate(shown) if 'Epoch(train) [1][1/3]' in line)
    assert first < 5 and not any('Config:' in line or 'System environment' in line for line in shown)
    (log,) = logs(work_dir)
    assert 'Config:' in log and 'System environment' in log and 'Hooks will be executed' in log
    rates = [line['lr'] for line in scalars(work_dir, 'lr')]
    # Three iterations of warm-up, then half a cosine of three.
    expected = [1e-3 * (0.5 + 0.5 * step / 2) for step in range(3)]
    expected += [1e-3 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert rates == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_quiet_run_ends_with_the_sentence_of_an_error_of_ours(tmp_path, data):
    cfg = without_validation(tiny_run(data))
    cfg.model.train_cfg.assigner.reg = -1.0
    cfg.dump(tmp_path / 'config.py')
    flags = tmp_path / 'config.py', '--work-dir', tmp_path / 'run'
    with pytest.raises(SystemExit, match=r'^ValueError: (\w+: )?reg must be') as stopped:
        call_tool('train.py', *flags, '--quiet')
    assert 'class `' not in str(stopped.value)  # the registry's words
    assert 'Traceback' in (tmp_path / 'run' / 'error.txt').read_text()
    with pytest.raises(ValueError, match='reg must be'):
        call_tool('train.py', *flags)


def test_only_errors_of_ours_and_of_configs_have_a_sentence(tmp_path):
    try:
        TASK_UTILS.build(
            dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=[dict(type='IoUCost')], reg=-1.0)
        )
    except Exception as error:
        assert 'reg' in sentence_of(error) and 'class `' not in sentence_of(error)
    try:
        Config.fromfile(write(tmp_path, "raise FileNotFoundError('no data: set ROOT')"))
    except Exception as error:
        assert sentence_of(error) == 'no data: set ROOT'
    try:
        math.sqrt(-1)
    except ValueError as error:
        assert sentence_of(error) is None
