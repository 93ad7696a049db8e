"""Pictures that PlanVisualizationHook makes during training."""

import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_tools import TOOLS, free_port, run_tool, scalars
from tiny_models import tiny_config
from tiny_runs import BY_ITERATION, tiny_run, train, warnings_of, without_validation

from uotod_mmdet.launch import add_tensorboard

sys.path.insert(0, str(TOOLS))
from run_pictures import plan_pictures  # noqa: E402

HOOK = dict(type='uotod_mmdet.PlanVisualizationHook', images=['2.png', 0])


def test_bad_arguments_of_the_hook_are_named():
    for kwargs, error, message in (
        (dict(images='0.png'), TypeError, r"images must be a list, such as \['0.png'\]"),
        (dict(images=[]), ValueError, 'images is empty'),
        (dict(layers='last'), TypeError, 'layers must be a list'),
        (dict(interval=0), ValueError, 'interval must be a whole number >= 1, got 0'),
        (dict(max_rows=2.5), ValueError, 'max_rows must be a whole number >= 1, got 2.5'),
    ):
        with pytest.raises(error, match=f'PlanVisualizationHook: {message}'):
            HOOKS.build({**HOOK, **kwargs})


def pictures(work_dir):
    return {path.name: cv2.imread(str(path)) for path in sorted(work_dir.glob('*/vis_data/vis_image/*.png'))}


@pytest.mark.slow
@pytest.mark.parametrize('by_iteration', [False, True])
def test_a_training_with_pictures_learns_the_same_weights_bit_for_bit(tmp_path, data, by_iteration):
    cfg = without_validation(tiny_run(data, **(BY_ITERATION if by_iteration else {})))
    if by_iteration:
        cfg.train_cfg.val_interval = 1000
        cfg.default_hooks.checkpoint.update(interval=6, by_epoch=False)
    without = train(cfg, tmp_path / 'without')
    cfg.custom_hooks = [dict(HOOK, interval=3 if by_iteration else 1)]
    with_hook = train(cfg, tmp_path / 'with')
    steps = (0, 3, 6) if by_iteration else (0, 1, 2)
    found = pictures(with_hook)
    assert sorted(found) == sorted(f'plan_{image}_{step}.png' for image in (0, 2) for step in steps)
    assert len({image.shape for image in found.values()}) == 1
    changed = [
        np.abs(found[f'plan_2_{a}.png'].astype(int) - found[f'plan_2_{b}.png']).sum() for a, b in zip(steps, steps[1:])
    ]
    assert all(changed)  # the weights moved, and the picture with them
    assert pictures(without) == {}
    name = 'iter_6.pth' if by_iteration else 'epoch_2.pth'
    learned = [torch.load(folder / name, weights_only=False)['state_dict'] for folder in (without, with_hook)]
    assert all(torch.equal(value, learned[1][key]) for key, value in learned[0].items())
    assert [line['loss'] for line in scalars(without, 'loss')] == [line['loss'] for line in scalars(with_hook, 'loss')]


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_right_step(tmp_path, data):
    cfg = without_validation(tiny_run(data, **{'train_cfg.max_epochs': 1}))
    cfg.custom_hooks = [HOOK]
    work_dir = train(cfg, tmp_path / 'run')
    cfg.train_cfg.max_epochs = 2
    train(cfg, work_dir, '--resume')
    of_runs = [sorted(p.name for p in run.glob('plan_*')) for run in sorted(work_dir.glob('*/vis_data/vis_image'))]
    assert [len(steps) for steps in plan_pictures(work_dir).values()] == [3, 3]
    assert of_runs == [
        ['plan_0_0.png', 'plan_0_1.png', 'plan_2_0.png', 'plan_2_1.png'],
        ['plan_0_2.png', 'plan_2_2.png'],
    ]


@pytest.mark.slow
def test_what_the_hook_cannot_draw_stops_training_before_it_starts(tmp_path, data):
    cfg = without_validation(tiny_run(data))
    for hook, message in (
        (dict(HOOK, images=[17]), 'images: 17 is not in the data set'),
        (dict(HOOK, images=['no.png']), "images: 'no.png' is neither a file name nor an image id"),
        (dict(HOOK, layers=['d0']), r"layers: 'd0' is not among those that GFL matches on these images, \['last'\]"),
    ):
        cfg.custom_hooks = [hook]
        with pytest.raises(ValueError, match=message):
            train(cfg, tmp_path / 'run')
        assert not scalars(tmp_path / 'run', 'loss')
    cfg = without_validation(tiny_run(data, **BY_ITERATION))
    cfg.custom_hooks = [dict(HOOK, by_epoch=True)]
    with pytest.raises(ValueError, match='by_epoch=True, but IterBasedTrainLoop counts iterations only'):
        train(cfg, tmp_path / 'run')


@pytest.mark.slow
def test_a_model_without_an_assigner_trains_on_with_one_warning(tmp_path, data):
    cfg = without_validation(tiny_run(data, **{'train_cfg.max_epochs': 1}))
    fcos = tiny_config('FCOSHead', dict(type='MaxIoUAssigner'))
    fcos.train_cfg = None
    fcos.bbox_head.norm_cfg = dict(type='BN')
    cfg.model = fcos
    cfg.custom_hooks = [HOOK]
    work_dir = train(cfg, tmp_path / 'run')
    (warning,) = [line for line in warnings_of(work_dir) if 'PlanVisualizationHook' in line]
    assert 'does nothing: FCOS with FCOSHead has no bbox_head with an assigner' in warning
    assert len(scalars(work_dir, 'loss')) == 3 and pictures(work_dir) == {}


@pytest.mark.slow
def test_one_of_two_processes_draws_and_both_learn_the_same(tmp_path, data, monkeypatch):
    losses = []
    for hooks in ([], [HOOK]):
        cfg = without_validation(tiny_run(data, **{'train_dataloader.batch_size': 3}))
        cfg.update(custom_hooks=hooks, env_cfg=dict())
        cfg.dump(tmp_path / 'config.py')
        monkeypatch.setenv('PORT', free_port())
        work_dir = tmp_path / f'run{len(hooks)}'
        done = run_tool(tmp_path, 'dist_train.sh', tmp_path / 'config.py', 2, '--work-dir', work_dir)
        assert done.returncode == 0, done.stdout
        losses.append([line['loss'] for line in scalars(work_dir, 'loss')])
    assert len(losses[0]) == 2 and losses[0] == losses[1]
    assert sorted(pictures(work_dir)) == [f'plan_{image}_{step}.png' for image in (0, 2) for step in (0, 1, 2)]


@pytest.mark.slow
def test_watch_and_tensorboard_of_the_training_tool(tmp_path, data):
    work_dir = train(without_validation(tiny_run(data)), tmp_path / 'run', '--watch', '--tensorboard')
    (folder,) = {path.parent for path in work_dir.glob('*/vis_data/events.out.tfevents.*')}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()['images'] == ['plan_0']
    assert [event.step for event in events.Images('plan_0')] == [0, 1, 2]
    (logged,) = scalars(work_dir, 'instability/last')  # of the second look, and by the other backend
    (event,) = events.Scalars('instability/last')
    assert event.value == pytest.approx(logged['instability/last']) and event.step == 6
    assert len(events.Scalars('matched_mass')) == 6


def test_tensorboard_that_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match='--tensorboard needs a visualizer in the config'):
        add_tensorboard(Config(dict()))
    cfg = Config(dict(visualizer=dict(vis_backends=[dict(type='mmengine.TensorboardVisBackend')])))
    add_tensorboard(cfg)
    assert len(cfg.visualizer.vis_backends) == 1
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='pip install tensorboard'):
        add_tensorboard(cfg)
