"""AssignerScheduleHook; real runs with it, resumed ones too, are in test_runner.py and test_tools.py."""

import math
from types import SimpleNamespace

import pytest
from mmdet.registry import HOOKS
from mmengine.logging import MessageHub
from tiny_models import build, tiny_config

SINKHORN = dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', match_costs=dict(type='IoUCost'))


def hook(**kwargs):
    return HOOKS.build(
        dict(type='uotod_mmdet.AssignerScheduleHook', **{**dict(param='reg', start=1.0, stop=0.01), **kwargs})
    )


def runner_of(assigner, epoch=0, iteration=0):
    """What the hook reads of a Runner, round a real detector."""
    return SimpleNamespace(
        model=build(tiny_config('GFLHead', assigner)),
        epoch=epoch,
        iter=iteration,
        max_epochs=12,
        max_iters=1200,
        train_loop=None,  # any but one that counts iterations; real loops are in test_runner.py
        message_hub=MessageHub.get_instance('test_hooks'),
    )


@pytest.mark.parametrize(
    'mode, middle', [('linear', 0.505), ('exponential', 0.1), ('cosine', 0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)]
)
def test_values_over_the_range(mode, middle):
    schedule = hook(mode=mode, begin=2, end=13)
    assert [schedule.value(step) for step in (0, 2)] == [1.0, 1.0]
    assert schedule.value(7) == pytest.approx(middle)
    assert [schedule.value(step) for step in (12, 100)] == pytest.approx([0.01, 0.01])
    values = [schedule.value(step) for step in range(15)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize('by_epoch, last', [(True, dict(epoch=11)), (False, dict(iteration=1199))])
def test_the_assigner_follows_to_the_end_of_training(by_epoch, last):
    schedule = hook(by_epoch=by_epoch)
    runner = runner_of(SINKHORN)
    schedule.before_train(runner)
    schedule.before_train_iter(runner, 0)
    assert runner.model.bbox_head.assigner.reg == 1.0
    vars(runner).update({'iter' if name == 'iteration' else name: value for name, value in last.items()})
    schedule.before_train_iter(runner, 0)
    assert runner.model.bbox_head.assigner.reg == pytest.approx(0.01)
    assert runner.message_hub.get_scalar('train/reg').current() == pytest.approx(0.01)


def test_the_mass_of_each_decoder_layer_moves():
    schedule = hook(param='gt_mass', start=[5, 3, 1], stop=[1, 1, 1])
    runner = runner_of({**SINKHORN, 'gt_mass': [5, 3, 1]})
    schedule.before_train(runner)
    for epoch, expected in ((0, [5, 3, 1]), (11, [1, 1, 1])):
        runner.epoch = epoch
        schedule.before_train_iter(runner, 0)
        assert runner.model.bbox_head.assigner.gt_mass == pytest.approx(expected)
        logged = [runner.message_hub.get_scalar(f'train/gt_mass.{layer}').current() for layer in range(3)]
        assert logged == pytest.approx(expected)
    assert schedule.value(5) == pytest.approx([5 - 4 * 5 / 11, 3 - 2 * 5 / 11, 1])


def test_lists_that_do_not_fit_are_refused():
    for start, stop in (([4, 2], [1]), (4.0, [1, 1]), ([], [])):
        with pytest.raises(ValueError, match='start and stop must be numbers, or lists of the same length'):
            hook(param='gt_mass', start=start, stop=stop)
    with pytest.raises(TypeError, match=r'gt_mass of .* is \[4.0, 1.0\]: start and stop must be lists'):
        hook(param='gt_mass', start=4, stop=1).before_train(runner_of({**SINKHORN, 'gt_mass': [4, 1]}))
    with pytest.raises(ValueError, match=r'gt_mass\[1\] must be positive'):
        hook(param='gt_mass', start=[4, 0], stop=[1, 1]).before_train(runner_of({**SINKHORN, 'gt_mass': [4, 1]}))
    with pytest.raises(TypeError, match='reg must be a number'):
        hook(start=[1, 2], stop=[1, 1]).before_train(runner_of(SINKHORN))


def test_strategies_inside_a_weighted_sum_are_found():
    strategies = [dict(type='uotod_mmdet.UnbalancedSinkhornAssigner'), dict(type='uotod_mmdet.HungarianAssigner')]
    runner = runner_of(
        dict(type='uotod_mmdet.WeightedSumAssigner', match_costs=dict(type='IoUCost'), strategies=strategies)
    )
    schedule = hook(param='reg_target', start=0.0, stop=10.0)
    schedule.before_train(runner)
    runner.epoch = 11
    schedule.before_train_iter(runner, 0)
    assert runner.model.bbox_head.assigner.strategies[0].reg_target == 10.0


def test_a_hook_used_again_follows_the_new_training():
    schedule, runner = hook(), runner_of(SINKHORN)
    for epochs in (12, 20):
        runner.max_epochs = epochs
        schedule.before_train(runner)
        assert schedule.value(epochs - 1) == pytest.approx(0.01)
        assert schedule.value(epochs - 2) > 0.02
    assert schedule.end is None


def test_bad_arguments_are_named():
    for kwargs, message in (
        (dict(mode='step'), "mode must be one of .* got 'step'"),
        (dict(stop=0.0), 'stop must be positive for reg, got 0.0'),
        (
            dict(param='background_cost', start=-1.0, mode='exponential'),
            "start must be positive for mode='exponential'",
        ),
        (dict(param='reg_pred', start=-1.0), 'start must be >= 0 for reg_pred, got -1.0'),
        (dict(start=float('inf')), 'start must be a finite number'),
        (dict(begin=3, end=3), 'needs 0 <= begin < end, got begin=3, end=3'),
    ):
        with pytest.raises(ValueError, match=message):
            hook(**kwargs)


@pytest.mark.parametrize(
    'param, start, of_assigner',
    [
        ('gt_mass', 3.0, lambda assigner: assigner.gt_mass),
        ('match_costs.1.weight', 2.0, lambda assigner: assigner.match_costs[1].weight),
        ('background_cost', -1.0, lambda assigner: assigner.background_cost),
    ],
)
def test_any_number_of_the_assigner_and_of_its_costs_moves(param, start, of_assigner):
    costs = [dict(type='IoUCost'), dict(type='uotod_mmdet.PriorCenterCost')]
    runner = runner_of(dict(SINKHORN, match_costs=costs))
    schedule = hook(param=param, start=start, stop=0.5)
    schedule.before_train(runner)
    for runner.epoch, value in ((0, start), (11, 0.5)):
        schedule.before_train_iter(runner, 0)
        assert of_assigner(runner.model.bbox_head.assigner) == value
    assert runner.message_hub.get_scalar(f'train/{param}').current() == 0.5


@pytest.mark.parametrize(
    'param, given, error, message',
    [
        (
            'normalize_cost',
            {},
            TypeError,
            'normalize_cost of .* is True, which is not a number',
        ),
        ('gt_mass', dict(gt_mass='dynamic_k'), TypeError, "gt_mass of .* is 'dynamic_k', which is not a number"),
        ('num_iter', {}, (TypeError, ValueError), 'num_iter must be'),
        ('tol', dict(), ValueError, 'tol must be'),
        ('match_costs.7.weight', {}, ValueError, 'no assigner of the model has match_costs.7.weight'),
        ('temperature', {}, ValueError, 'no assigner of the model has temperature'),
    ],
)
def test_what_is_not_a_number_or_out_of_range_is_refused_before_training(param, given, error, message):
    with pytest.raises(error, match=message):
        hook(param=param, start=0.5, stop=-1.0).before_train(runner_of(dict(SINKHORN, **given)))


@pytest.mark.parametrize('param, assigner', [('reg', 'HungarianAssigner'), ('reg_target', 'BalancedSinkhornAssigner')])
def test_a_model_without_the_parameter_is_named(param, assigner):
    runner = runner_of(dict(type=f'uotod_mmdet.{assigner}', match_costs=dict(type='IoUCost')))
    with pytest.raises(ValueError, match=f'no assigner of the model has {param}; it has .*{assigner}'):
        hook(param=param).before_train(runner)
