"""What MatchingStabilityHook logs: against plans that are matched again from the checkpoints of each epoch."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.logging import MessageHub
from test_tools import free_port, load, run_tool, scalars
from tiny_models import build, images_and_samples, tiny_config
from tiny_runs import BY_ITERATION, tiny_run, train, warnings_of, without_validation

from uotod_mmdet.visualization import fixed_items, matchings_of, plain_pipeline

HOOK = dict(type='uotod_mmdet.MatchingStabilityHook')


def curves(work_dir):
    """The lines of the hook, without what any line has."""
    names = ('step', 'iter', 'epoch', 'time')
    lines = scalars(work_dir, 'instability/last')
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


def plans_of(cfg, checkpoint, images):
    """The plan of each image with the weights of a checkpoint, and the level of each prior."""
    model = MODELS.build(cfg.model)
    model.load_state_dict(load(checkpoint)['state_dict'])
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    records = [layers[0] for layers in matchings_of(model, fixed_items(dataset, images, plain_pipeline(cfg)))]
    return [record.plan.numpy() for record in records], [record.levels.numpy() for record in records]


def expected_between(cfg, before, after, images):
    """Instability and change of the plans of two checkpoints, counted prediction by prediction."""
    (old, levels), (new, _) = plans_of(cfg, before, images), plans_of(cfg, after, images)
    found = {}
    for was, now, level in zip(old, new, levels):
        for i in range(len(was)):
            moved = float(was[i].argmax() != now[i].argmax())
            change = sum(abs(float(a) - float(b)) for a, b in zip(was[i], now[i])) / 2
            for place in ('last', f'level{level[i]}'):
                for name, value in (('instability', moved), ('plan_change', change)):
                    found[f'{name}/{place}'] = found.get(f'{name}/{place}', 0) + value / len(images)
    return found


def run_config(data, **changes):
    cfg = without_validation(tiny_run(data, **changes))
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.01)  # so that the matching moves within a few iterations
    assigner = cfg.model.train_cfg.assigner
    assigner.update(
        box_source='bboxes', match_costs=[dict(type='IoUCost', iou_mode='giou'), dict(type='FocalLossCost')]
    )
    cfg.default_hooks.checkpoint.update(interval=1, save_optimizer=True)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('assigner', ['soft', 'hard', 'ATSSAssigner'])
def test_curves_are_those_of_the_checkpoints(tmp_path, data, assigner):
    cfg = run_config(data, **{'train_cfg.max_epochs': 3})
    if assigner == 'ATSSAssigner':
        cfg.model.train_cfg.assigner = dict(type='ATSSAssigner', topk=9)
    else:
        cfg.model.train_cfg.assigner.hard = assigner == 'hard'
    cfg.custom_hooks = [dict(HOOK, images=['3.png', 0, 5])]
    work_dir = train(cfg, tmp_path / 'run')
    found = curves(work_dir)
    assert len(found) == 2  # from the second look on
    for index, line in enumerate(found):
        checkpoints = [work_dir / f'epoch_{index + epoch}.pth' for epoch in (1, 2)]
        expected = expected_between(cfg, *checkpoints, [3, 0, 5])
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)
        if assigner != 'soft':
            assert line['plan_change/last'] == pytest.approx(line['instability/last'])
    if assigner != 'ATSSAssigner':  # which looks at priors alone
        assert sum(line['plan_change/last'] for line in found) > 0.1
    assert [(line['epoch'], line['iter']) for line in scalars(work_dir, 'instability/last')] == [(2, 6), (3, 9)]


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_curves(tmp_path, data):
    cfg = run_config(data, **{'train_cfg.max_epochs': 4})
    cfg.custom_hooks = [dict(HOOK, images=4)]
    whole = curves(train(cfg, tmp_path / 'whole'))
    cfg.train_cfg.max_epochs = 2
    work_dir = train(cfg, tmp_path / 'parts')
    cfg.train_cfg.max_epochs = 4
    train(cfg, work_dir, '--resume')
    assert len(whole) == 3 and curves(work_dir) == whole
    cfg.custom_hooks[0]['images'] = 3  # other images have no last look
    other = train(cfg, tmp_path / 'other', '--resume', work_dir / 'epoch_2.pth')
    assert len(curves(other)) == 1


@pytest.mark.slow
def test_iterations_are_counted_where_the_loop_counts_them(tmp_path, data):
    cfg = run_config(data, **BY_ITERATION)
    cfg.train_cfg.val_interval = 1000
    cfg.custom_hooks = [dict(HOOK, interval=2)]
    lines = scalars(train(cfg, tmp_path / 'run'), 'instability/last')
    assert [line['iter'] for line in lines] == [4, 6]


@pytest.mark.slow
def test_a_model_without_a_matching_trains_without_curves(tmp_path, data):
    cfg = run_config(data)
    cfg.model = tiny_config('FCOSHead', {})
    cfg.model.test_cfg.score_thr = 0.0
    cfg.custom_hooks = [HOOK]
    work_dir = train(cfg, tmp_path / 'run')
    assert curves(work_dir) == [] and (work_dir / 'epoch_2.pth').exists()
    (warning,) = [line for line in warnings_of(work_dir) if 'Stability' in line]
    assert 'MatchingStabilityHook does nothing: FCOS with FCOSHead has no bbox_head with an assigner' in warning


@pytest.mark.slow
def test_two_processes_write_one_curve_with_the_values_of_one(tmp_path, data, monkeypatch):
    cfg = run_config(data, **{'train_cfg.max_epochs': 3})
    cfg.train_dataloader.batch_size = 3  # of six images
    cfg.custom_hooks = [dict(HOOK, images=[0, 4])]
    path, work_dir = tmp_path / 'config.py', tmp_path / 'run'
    cfg.dump(path)
    monkeypatch.setenv('PORT', free_port())
    done = run_tool(tmp_path, 'dist_train.sh', path, 2, '--work-dir', work_dir)
    assert done.returncode == 0, done.stdout
    found = curves(work_dir)
    assert len(found) == 2
    for index, line in enumerate(found):
        checkpoints = [work_dir / f'epoch_{index + epoch}.pth' for epoch in (1, 2)]
        assert line == pytest.approx(expected_between(cfg, *checkpoints, [0, 4]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('head', ['DETRHead', 'DINOHead'])
def test_each_decoder_layer_has_its_curve(head):
    match_costs = [dict(type='FocalLossCost'), dict(type='IoUCost', iou_mode='giou')]
    model = tiny_config(head, dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=match_costs, reg=0.05))
    model.bbox_head.type = f'uotod_mmdet.{head}'
    detector, batch = build(model), images_and_samples((3, 2))
    items = [dict(inputs=image, data_samples=sample) for image, sample in zip(batch['inputs'], batch['data_samples'])]
    hook, written = HOOKS.build(HOOK), []
    runner = SimpleNamespace(
        epoch=0,
        iter=0,
        message_hub=MessageHub.get_instance(f'test_matching_stability {head}'),
        visualizer=SimpleNamespace(add_scalars=lambda values, step: written.append(values)),
        logger=logging.getLogger('test'),
    )
    looks = []
    for _ in range(2):
        looks.append(matchings_of(detector, items))
        hook.look(runner, looks[-1], 1)
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    (line,) = written
    layers = ['d0', 'last'] if head == 'DETRHead' else ['d0', 'last', 'enc']
    assert {name for name in line if '/' in name} == {
        f'{n}/{p}' for n in ('instability', 'plan_change') for p in layers
    }
    for place, layer in enumerate(layers):
        old, new = ([image[place].plan.numpy() for image in look] for look in looks)
        change = np.mean([np.abs(b - a).sum() / 2 for a, b in zip(old, new)])
        moved = np.mean([(b.argmax(1) != a.argmax(1)).sum() for a, b in zip(old, new)])
        assert line[f'plan_change/{layer}'] == pytest.approx(change, rel=1e-4) and change > 0
        assert line[f'instability/{layer}'] == pytest.approx(moved)
        assert runner.message_hub.get_scalar(f'matching/instability/{layer}').current() == pytest.approx(moved)


def test_bad_arguments_are_named(tmp_path, data):
    for kwargs, error, message in (
        (dict(images='0.png'), TypeError, r"images must be a list, such as \['0.png'\]"),
        (dict(images=[]), ValueError, 'images is empty'),
        (dict(images=0), ValueError, 'images must be a whole number >= 1, got 0'),
        (dict(interval=0), ValueError, 'interval must be a whole number >= 1, got 0'),
    ):
        with pytest.raises(error, match=f'MatchingStabilityHook: {message}'):
            HOOKS.build({**HOOK, **kwargs})


@pytest.mark.slow
def test_what_the_data_set_or_the_loop_does_not_have_stops_training_before_it_starts(tmp_path, data):
    cfg = run_config(data)
    for hook, message in (
        (dict(HOOK, images=[17]), 'images: 17 is not in the data set'),
        (dict(HOOK, images=['no.png']), "images: 'no.png' is neither a file name nor an image id"),
    ):
        cfg.custom_hooks = [hook]
        with pytest.raises(ValueError, match=message):
            train(cfg, tmp_path / 'run')
    cfg = run_config(data, **BY_ITERATION)
    cfg.custom_hooks = [dict(HOOK, by_epoch=True)]
    with pytest.raises(ValueError, match='MatchingStabilityHook: by_epoch=True, but IterBasedTrainLoop counts'):
        train(cfg, tmp_path / 'run')
