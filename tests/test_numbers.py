"""Every number, mask and cost matrix that an assigner is given: the right plan, or an error that names it."""

import re

import numpy as np
import pytest
import torch
from mmdet.registry import TASK_UTILS

STRATEGIES = {
    'HungarianAssigner': {},
    'BalancedSinkhornAssigner': dict(reg=0.05, tol=1e-6),
    'UnbalancedSinkhornAssigner': dict(reg=0.05, tol=1e-6),
    'ClosestPredictionAssigner': {},
    'ClosestTargetAssigner': {},
    'SoftMinAssigner': {},
    'WeightedSumAssigner': dict(strategies=[dict(type='uotod_mmdet.HungarianAssigner')] * 2),
    'OTAAssigner': dict(gt_mass=1.0, tol=1e-6),
}
NAN, INF = float('nan'), float('inf')


def build(name, **kwargs):
    costs = {} if name == 'OTAAssigner' else dict(match_costs=dict(type='IoUCost'))
    return TASK_UTILS.build({'type': f'uotod_mmdet.{name}', **costs, **STRATEGIES[name], **kwargs})


# Cost matrices


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize('name', STRATEGIES)
def test_integer_costs_give_the_plan_of_the_same_floats(name, dtype):
    cost = torch.randint(0, 2 if dtype == torch.bool else 50, (3, 9, 4), generator=torch.Generator().manual_seed(0))
    gt_mask = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    assigner = build(name)
    wide = torch.float64 if dtype in (torch.int64, torch.int32) else torch.float32
    plan = assigner.match(cost.to(dtype), gt_mask)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, assigner.match(cost.to(wide), gt_mask).float())
    assert (plan.sum((1, 2)) > 1).all()


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32])
@pytest.mark.parametrize('name', ['HungarianAssigner', 'ClosestTargetAssigner', 'ClosestPredictionAssigner'])
def test_integers_too_large_for_float32_keep_their_order(name, dtype):
    cost = 2**30 + torch.tensor([[[2, 1], [1, 2], [3, 3]]], dtype=dtype)  # all one number in float32
    plan = build(name, background_cost=2.0**31).match(cost)
    assert plan[0, :, :2].tolist()[:2] == [[0, 1], [1, 0]]


def test_the_default_dtype_is_that_of_plans_of_integers():
    torch.set_default_dtype(torch.float64)
    try:
        assert build('BalancedSinkhornAssigner').match(torch.eye(3, dtype=torch.long)[None]).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_no_matrix_of_real_numbers_is_named():
    for cost, found in ((np.ones((1, 2, 3)), 'ndarray'), (torch.ones(1, 2, 3, dtype=torch.complex64), 'complex64')):
        with pytest.raises(TypeError, match=f'cost must be a tensor of real numbers, .* got .*{found}'):
            build('HungarianAssigner').match(cost)


@pytest.mark.parametrize('name', STRATEGIES)
def test_masks_that_are_not_bool_or_of_another_shape_are_named(name):
    cost = torch.rand(2, 5, 3)
    for argument, size in (('gt_mask', 3), ('pred_mask', 5)):
        ones = torch.ones(2, size)
        for mask in (ones, ones.int(), ones[0].bool(), ones[:1].bool(), ones.bool()[:, :-1], [[True] * size] * 2):
            with pytest.raises(ValueError, match=rf'{argument} must be bool of shape \(2, {size}\).* got .*bool\(\)'):
                build(name).match(cost, **{argument: mask})


# Mass


@pytest.mark.parametrize('name', STRATEGIES)
@pytest.mark.parametrize(
    'mass, message',
    [
        (torch.tensor([[1.0, NAN, 1], [1, 1, 1]]), 'finite and >= 0, got nan for ground truth 1 of image 0'),
        (torch.tensor([[1.0, 1, 1], [1, 1, -2]]), 'finite and >= 0, got -2.0 for ground truth 2 of image 1'),
        (torch.tensor([[1.0, 1, 1], [INF, 1, 1]]), 'finite and >= 0, got inf for ground truth 0 of image 1'),
        (torch.ones(3), r'one number for each ground truth, \(2, 3\), .* got .* of shape \(3,\)'),
        (torch.ones(2, 4), r'one number for each ground truth, \(2, 3\), .* got .* of shape \(2, 4\)'),
        (torch.ones(2, 3, dtype=torch.complex64), 'got torch.complex64'),
        (torch.ones(2, 3, device='meta'), 'on cpu, got .* on meta'),
        (-1.0, 'gt_mass must be >= 0, got -1.0'),
        (NAN, 'gt_mass must be >= 0, got nan'),
    ],
)
def test_mass_that_is_none_is_named(name, mass, message):
    with pytest.raises(ValueError, match=f'gt_mass must .*{message}' if 'gt_mass' not in message else message):
        build(name).match(torch.rand(2, 5, 3), gt_mass=mass)


@pytest.mark.parametrize('name', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner', 'OTAAssigner'])
def test_mass_of_every_form_is_that_mass(name):
    cost = torch.rand(2, 12, 3)
    gt_mask = torch.tensor([[True] * 3, [True, True, False]])
    exact = dict(reg_pred=None, reg_target=None) if name.startswith('Un') else {}
    assigner = build(name, num_iter=2000, **exact)
    expected = assigner.match(cost, gt_mask, torch.full((2, 3), 2.0))
    torch.testing.assert_close(expected[0, :, :3].sum(0), torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)
    padded = torch.full((2, 3), 2.0, dtype=torch.float64)
    padded[1, 2] = NAN  # padding may hold anything
    for mass in (2, 2.0, np.float32(2), torch.tensor(2), torch.full((2, 3), 2), padded, padded.half()):
        assert torch.equal(assigner.match(cost, gt_mask, mass), expected)
    free = assigner.match(cost, gt_mask, torch.tensor([[2.0, 0, 2]] * 2))
    assert torch.isfinite(free).all() and free[:, :, 1].abs().max() < 1e-6


# Numbers of the constructor


SINKHORN = 'UnbalancedSinkhornAssigner'


@pytest.mark.parametrize(
    'value', [1e3, 1000, np.float64(1000), np.int32(1000), torch.tensor(1000), torch.tensor(1e3)], ids=repr
)
def test_a_whole_number_may_be_written_in_any_way(value):
    assigner = build('BalancedSinkhornAssigner', num_iter=value, topq=value, reg=0.05)
    assert assigner.num_iter == assigner.topq == 1000
    assert type(assigner.num_iter) is type(assigner.topq) is int
    cost = torch.rand(2, 30, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(assigner.match(cost), build('BalancedSinkhornAssigner', num_iter=1000).match(cost))


def test_numbers_of_numpy_and_torch_are_those_of_python():
    numbers = dict(reg=0.05, reg_pred=2.0, reg_target=0.5, tol=1e-3, gt_mass=2.0, background_cost=0.25)
    cost = torch.rand(2, 30, 5)
    expected = build(SINKHORN, **numbers).match(cost)
    for kind in (np.float64, torch.tensor, lambda value: torch.tensor(value, dtype=torch.float64)):
        assigner = build(SINKHORN, **{name: kind(value) for name, value in numbers.items()})
        assert all(type(getattr(assigner, name)) is float for name in numbers)
        torch.testing.assert_close(assigner.match(cost), expected, rtol=1e-5, atol=1e-5)


CASES = [
    (name, argument, value)
    for name, arguments, values in (
        (SINKHORN, ('num_iter', 'topq'), (10.5, 0, -1, NAN, INF, 1e30)),
        (SINKHORN, ('reg', 'reg_dimless', 'tol', 'gt_mass'), (0, -1.0, NAN, INF, -INF, 1e-300, 1e39)),
        (SINKHORN, ('reg_pred', 'reg_target'), (-1.0, NAN, -INF)),
        *((strategy, ('background_cost', 'ignore_iof_thr'), (NAN, INF, -1e39, 1e300)) for strategy in STRATEGIES),
        ('SoftMinAssigner', ('reg', 'background_weight'), (-1, NAN, INF, 1e-300, 1e300)),
        ('ClosestPredictionAssigner', ('threshold',), (NAN,)),
        ('OTAAssigner', ('cls_weight', 'iou_weight', 'center_cost'), (-1, NAN, INF)),
        ('OTAAssigner', ('center_radius',), (0, NAN)),
    )
    for argument in arguments
    for value in values
]


@pytest.mark.parametrize('name, argument, value', CASES)
def test_a_number_out_of_range_is_named(name, argument, value):
    with pytest.raises(ValueError, match=f'^{argument} must be .*, got {re.escape(str(value))}'):
        build(name, **{argument: value})


@pytest.mark.parametrize('value', ['0.1', None, True, [0.1], torch.ones(2), 1j], ids=repr)
@pytest.mark.parametrize(
    'name, argument',
    [
        (SINKHORN, 'num_iter'),
        (SINKHORN, 'tol'),
        (SINKHORN, 'background_cost'),
        (SINKHORN, 'ignore_iof_thr'),
        ('SoftMinAssigner', 'reg'),
        ('OTAAssigner', 'iou_weight'),
    ],
)
def test_what_is_no_number_is_named(name, argument, value):
    with pytest.raises(TypeError, match=rf'^{argument} must be a number.* got .* of type '):
        build(name, **{argument: value})


@pytest.mark.parametrize('argument', ['background', 'keep_every_gt', 'normalize_cost'])
def test_a_switch_is_true_or_false(argument):
    with pytest.raises(TypeError, match=f"{argument} must be True or False, got 'False' of type str"):
        build(SINKHORN, **{argument: 'False'})
    assert getattr(build(SINKHORN, **{argument: np.False_}), argument) is False


def test_infinite_weights_keep_the_marginals():
    cost = torch.rand(2, 10, 3)
    infinite = build(SINKHORN, reg_pred=INF, reg_target=INF).match(cost)
    assert torch.equal(infinite, build(SINKHORN, reg_pred=None, reg_target=None).match(cost))


@pytest.mark.parametrize('weights', [[1.0, NAN], [INF, 1.0], [1.0, '2'], [0, 0], [1.0, None]])
def test_weights_of_a_sum_are_numbers(weights):
    with pytest.raises((TypeError, ValueError), match='weights'):
        build('WeightedSumAssigner', weights=weights)
    assigner = build('WeightedSumAssigner', weights=np.array([1, 3]))
    assert assigner.weights == [0.25, 0.75]


def test_a_strategy_without_plans_is_named():
    strategies = [dict(type='HungarianAssigner')]  # mmdet's
    with pytest.raises(TypeError, match='^HungarianAssigner: .* must be assigners of uotod_mmdet, which have plans'):
        build('WeightedSumAssigner', strategies=strategies)


def test_a_cost_that_is_no_config_is_named():
    for costs in ('IoUCost', ['IoUCost'], [None]):
        with pytest.raises(TypeError, match=r"match_costs must hold configs such as dict\(type='IoUCost'\), got"):
            build('HungarianAssigner', match_costs=costs)


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='uotod_mmdet.LogIoUCost', eps=NAN), 'eps must be positive'),
        (dict(type='uotod_mmdet.LogIoUCost', weight=NAN), 'weight must be finite'),
        (dict(type='uotod_mmdet.PriorCenterCost', weight=INF), 'weight must be finite'),
        (dict(type='uotod_mmdet.InsideGTCost', center_radius=NAN), 'center_radius must be positive'),
    ],
)
def test_numbers_of_costs_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        TASK_UTILS.build(config)


@pytest.mark.parametrize('name', STRATEGIES)
def test_a_value_set_later_is_checked_as_in_the_constructor(name):
    assigner = build(name)
    cost = torch.rand(2, 20, 4, generator=torch.Generator().manual_seed(0))
    assigner.background_cost = np.float32(0.25)
    assert (
        torch.equal(assigner.match(cost), build(name, background_cost=0.25).match(cost))
        or name == 'WeightedSumAssigner'
    )
    for value in (NAN, INF):
        with pytest.raises(ValueError, match='background_cost must be finite, got'):
            assigner.background_cost = value
    assert assigner.background_cost == 0.25


def test_a_plan_that_half_precision_does_not_hold_is_named():
    """Without penalties the plan is exp(-cost / reg), in units of 1 / N, whatever that is."""
    options = dict(match_costs=dict(type='IoUCost'), reg=0.05, reg_pred=0, reg_target=0, normalize_cost=False)
    assigner = TASK_UTILS.build(dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', **options))
    cost = torch.tensor([[[-1.0], [0.5]]])
    torch.testing.assert_close(assigner.match(cost)[0, :, 0], 2 * (-cost / 0.05).exp()[0, :, 0])
    with pytest.raises(ValueError, match='cost is torch.float16, which does not hold the largest entry of the plan'):
        assigner.match(cost.half())
