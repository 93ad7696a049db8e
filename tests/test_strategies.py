"""Properties that every matching strategy has, and the limits that bind them together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

FIGURE_COST = torch.tensor([[0.61, 0.96], [1.34, 0.88], [0.88, 0.89], [0.40, 0.65], [1.11, 0.73]])
COSTS = dict(type='IoUCost')
FIXED = dict(normalize_cost=False, num_iter=20000)
STRATEGIES = {
    'Hungarian': dict(type='HungarianAssigner'),
    'Balanced': dict(type='BalancedSinkhornAssigner', reg=0.1, tol=1e-9, **FIXED),
    'BalancedMass': dict(type='BalancedSinkhornAssigner', reg=0.1, gt_mass=2.5, tol=1e-9, **FIXED),
    'Unbalanced': dict(type='UnbalancedSinkhornAssigner', reg=0.1, reg_pred=2.0, reg_target=0.5, tol=1e-9, **FIXED),
    'HalfBalanced': dict(type='UnbalancedSinkhornAssigner', reg=0.1, reg_pred=None, reg_target=1.0, tol=1e-9, **FIXED),
    'ClosestPrediction': dict(type='ClosestPredictionAssigner'),
    'ClosestPredictionUniform': dict(type='ClosestPredictionAssigner', uniform_background=True, threshold=0.4),
    'ClosestTarget': dict(type='ClosestTargetAssigner'),
    'SoftMinTarget': dict(type='SoftMinAssigner', source='target'),
    'SoftMinPrediction': dict(type='SoftMinAssigner', source='prediction', background_weight=0.5),
    'WeightedSum': dict(
        type='WeightedSumAssigner',
        strategies=[dict(type='uotod_mmdet.HungarianAssigner'), dict(type='uotod_mmdet.ClosestTargetAssigner')],
        weights=[1.0, 3.0],
    ),
    'OTA': dict(type='OTAAssigner', gt_mass=2.0, tol=1e-9, num_iter=20000),
}
quick = settings(max_examples=15, deadline=None, derandomize=True)


def build(name, **kwargs):
    config = {**STRATEGIES[name], **kwargs}
    config['type'] = f'uotod_mmdet.{config["type"]}'
    if name != 'OTA':
        config.setdefault('match_costs', COSTS)
    return TASK_UTILS.build(config)


def costs(seed, batch=1, max_preds=25, max_gts=8):
    """Random cost with distinct entries (B, N, M), float64."""
    rng = np.random.default_rng(seed)
    num_preds, num_gts = int(rng.integers(1, max_preds + 1)), int(rng.integers(0, max_gts + 1))
    return torch.from_numpy(rng.random((batch, num_preds, num_gts)))


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize('name', STRATEGIES)
@given(seed=seeds)
@quick
def test_plans_are_finite_nonnegative_and_zero_on_padding(name, seed):
    cost = costs(seed, batch=3)
    gt_mask = torch.from_numpy(np.random.default_rng(seed).random((3, cost.size(2))) < 0.6)
    plan = build(name, background_cost=0.3).match(cost, gt_mask)
    assert plan.shape == (3, cost.size(1), cost.size(2) + 1)
    assert torch.isfinite(plan).all() and (plan >= 0).all()
    assert plan[:, :, :-1].masked_select(~gt_mask[:, None].expand_as(cost)).eq(0).all()


@pytest.mark.parametrize('name', STRATEGIES)
@given(seed=seeds)
@quick
def test_an_images_plan_depends_neither_on_neighbours_nor_on_padding(name, seed):
    rng = np.random.default_rng(seed)
    cost = costs(seed, batch=3) * torch.tensor([1.0, 3.0, 0.5])[:, None, None]
    gt_mask = torch.from_numpy(rng.random((3, cost.size(2))) < 0.6)
    assigner = build(name, background_cost=0.3)
    together = assigner.match(cost, gt_mask)
    for index in range(3):
        real = gt_mask[index]
        alone = assigner.match(cost[index : index + 1, :, real])[0]
        columns = torch.cat([real, torch.tensor([True])])
        assert (together[index][:, columns] - alone).abs().max() < 1e-6


@pytest.mark.parametrize('name', STRATEGIES)
@given(seed=seeds)
@quick
def test_predictions_that_take_no_part_change_nothing(name, seed):
    rng = np.random.default_rng(seed)
    cost = costs(seed, batch=3)
    pred_mask = torch.from_numpy(rng.random((3, cost.size(1))) < 0.6)
    cost[~pred_mask] = float('nan')  # of no meaning, whatever it holds
    assigner = build(name, background_cost=0.3)
    together = assigner.match(cost, pred_mask=pred_mask)
    assert together[~pred_mask].eq(0).all()
    for index in range(3):
        real = pred_mask[index]
        alone = assigner.match(cost[index : index + 1, real])[0]
        assert (together[index][real] - alone).abs().max() < 1e-6 if real.any() else True


@pytest.mark.parametrize('name', STRATEGIES)
@given(seed=seeds)
@quick
def test_permuting_predictions_or_ground_truths_permutes_the_plan(name, seed):
    cost = costs(seed)
    rng = np.random.default_rng(seed)
    rows, columns = (torch.from_numpy(rng.permutation(size)) for size in cost.shape[1:])
    assigner = build(name, background_cost=0.3)
    plan = assigner.match(cost)
    permuted = assigner.match(cost[:, rows][:, :, columns])
    with_background = torch.cat([columns, torch.tensor([cost.size(2)])])
    assert (permuted - plan[:, rows][:, :, with_background]).abs().max() < 1e-6


@pytest.mark.parametrize('name', ['Balanced', 'BalancedMass', 'OTA'])
@given(seed=seeds)
@quick
def test_balanced_plans_keep_both_marginals(name, seed):
    cost = costs(seed)
    _, num_preds, num_gts = cost.shape
    assigner = build(name)
    plan = assigner.match(cost)[0]
    mass = min(assigner.gt_mass, num_preds / max(num_gts, 1))
    expected = torch.tensor([mass] * num_gts + [num_preds - num_gts * mass], dtype=plan.dtype)
    assert (plan.sum(1) - 1).abs().max() < 1e-6 * num_preds
    assert (plan.sum(0) - expected).abs().max() < 1e-6 * num_preds


@given(seed=seeds)
@quick
def test_hungarians_total_cost_is_scipys(seed):
    cost = costs(seed)
    plan = build('Hungarian').match(cost)[0]
    rows, columns = linear_sum_assignment(cost[0].numpy())
    assert float((plan[:, :-1] * cost[0]).sum()) == pytest.approx(float(cost[0].numpy()[rows, columns].sum()))
    assert (plan.sum(1) == 1).all()


# Proposition 1: the limits.


def converging(name, target, seed, regs, **kwargs):
    """Largest differences of a Sinkhorn plan from its limit as reg falls."""
    cost = costs(seed, max_preds=12, max_gts=5)
    limit = build(target, background_cost=0.5, **kwargs.pop('target_args', {})).match(cost)
    plans = [build(name, background_cost=0.5, reg=reg, **kwargs).match(cost) for reg in regs]
    return [float((plan - limit).abs().max()) for plan in plans]


@pytest.mark.parametrize('seed', range(5))
def test_without_entropy_balanced_is_hungarian(seed):
    far, near = converging('Balanced', 'Hungarian', seed, [0.1, 3e-3])
    assert near < 0.5 * far + 1e-9


@pytest.mark.parametrize('seed', range(5))
def test_without_entropy_and_reg_target_unbalanced_is_closest_target(seed):
    far, near = converging('Unbalanced', 'ClosestTarget', seed, [0.1, 5e-4], reg_pred=None, reg_target=0.0)
    assert near < 0.02 and near <= far + 1e-9


@pytest.mark.parametrize('seed', range(5))
def test_without_entropy_and_reg_pred_unbalanced_is_closest_prediction(seed):
    far, near = converging(
        'Unbalanced',
        'ClosestPrediction',
        seed,
        [0.1, 5e-4],
        reg_pred=0.0,
        reg_target=None,
        target_args=dict(uniform_background=True),
    )
    assert near < 0.02 and near <= far + 1e-9


@given(seed=seeds)
@quick
def test_unbalanced_with_infinite_weights_is_balanced(seed):
    cost = costs(seed)
    unbalanced = build('Unbalanced', reg_pred=float('inf'), reg_target=None).match(cost)
    assert torch.equal(unbalanced, build('Balanced').match(cost))


@given(seed=seeds)
@quick
def test_softmin_is_unbalanced_with_one_side_free(seed):
    cost = costs(seed)
    cost = cost[:, :, : cost.size(1) - 1]  # M < N, so that the background has mass
    free_pred = build('Unbalanced', reg_pred=0.0, reg_target=None, background_cost=0.3).match(cost)
    assert (build('SoftMinTarget', background_cost=0.3).match(cost) - free_pred).abs().max() < 1e-6
    free_target = build('Unbalanced', reg_pred=None, reg_target=0.0, background_cost=0.3).match(cost)
    softmin = build('SoftMinPrediction', background_weight=1.0, background_cost=0.3).match(cost)
    assert (softmin - free_target).abs().max() < 1e-6


@pytest.mark.parametrize(
    'name, expected',
    [
        ('Hungarian', [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        ('ClosestTarget', [[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        ('ClosestPrediction', [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 1]]),
    ],
)
def test_hard_plans_of_the_papers_figure_are_reproduced_exactly(name, expected):
    assert build(name, background_cost=0.8).match(FIGURE_COST[None])[0].tolist() == expected


def test_weighted_sum_weighs_and_adds():
    parts = [build('Hungarian').match(FIGURE_COST[None]), build('ClosestTarget').match(FIGURE_COST[None])]
    assert torch.allclose(build('WeightedSum').match(FIGURE_COST[None]), 0.25 * parts[0] + 0.75 * parts[1])
    plain = build('WeightedSum', normalize=False).match(FIGURE_COST[None])
    assert torch.allclose(plain, parts[0] + 3 * parts[1])


@pytest.mark.parametrize('name', ['Balanced', 'Unbalanced', 'HalfBalanced'])
def test_pot_as_the_solver_gives_the_same_plan(name):
    cost = torch.from_numpy(np.random.default_rng(0).random((2, 25, 6)))
    gt_mask = torch.ones(2, 6, dtype=torch.bool)
    gt_mask[1, 0] = False
    plan = build(name, background_cost=0.3).match(cost, gt_mask)
    checked = build(name, background_cost=0.3, solver='pot', tol=1e-13).match(cost, gt_mask)
    assert (plan - checked).abs().max() < 1e-6


def test_closest_prediction_heeds_its_threshold():
    plan = build('ClosestPrediction', threshold=0.5).match(FIGURE_COST[None])[0]
    assert plan[:, 0].tolist() == [0, 0, 0, 1, 0]
    assert plan[:, 1].eq(0).all()
    assert plan[:, 2].tolist() == [1, 1, 1, 0, 1]


# Dynamic k and OTA


def dense_image():
    ys, xs = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing='ij')
    points = torch.stack([xs, ys], 2).reshape(-1, 2) * 8 + 4
    priors = torch.cat([points - 16, points + 16], 1)
    gt = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40], [40, 40, 46, 46]]), labels=torch.tensor([0, 1]))
    return InstanceData(priors=priors), gt


def test_dynamic_k_gives_each_ground_truth_the_sum_of_its_largest_ious():
    from mmdet.structures.bbox import bbox_overlaps

    pred, gt = dense_image()
    result = build('Balanced', gt_mass='dynamic_k', topq=20, reg=0.01).assign(pred, gt)
    wanted = bbox_overlaps(pred.priors, gt.bboxes).topk(20, 0).values.sum(0).clamp(min=1)
    counts = torch.bincount(result.gt_inds, minlength=3)[1:]
    assert wanted[0] > 4 and wanted[1] == 1
    assert (counts - wanted).abs().max() <= 1
    with pytest.raises(ValueError, match="gt_mass='dynamic_k' needs the overlaps"):
        build('Balanced', gt_mass='dynamic_k').match(FIGURE_COST[None])


def test_ota_keeps_priors_outside_the_centre_region_in_the_background():
    pred, gt = dense_image()
    gt = gt[:1]
    result = build('OTA', gt_mass='dynamic_k', center_radius=0.25, tol=1e-3, num_iter=500).assign(pred, gt)
    centers = (pred.priors[:, :2] + pred.priors[:, 2:]) / 2
    off = (centers - 22.0).abs().amax(1)
    assert (result.gt_inds > 0).sum() >= 3
    assert off[result.gt_inds > 0].max() < 0.25 * 32


def test_ota_reads_logits_and_probabilities_alike():
    pred, gt = dense_image()
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    boxes = pred.priors + 2
    as_logits = InstanceData(priors=pred.priors, bboxes=boxes, scores=logits)
    as_probabilities = InstanceData(priors=pred.priors, bboxes=boxes, scores=logits.sigmoid())
    ota = build('OTA')
    assert torch.equal(ota.assign(as_logits, gt).gt_inds, ota.assign(as_probabilities, gt).gt_inds)


# Hostile input


@pytest.mark.parametrize('name', STRATEGIES)
@pytest.mark.parametrize(
    'cost',
    [
        torch.zeros(2, 12, 3),
        torch.full((2, 12, 3), 1e6),
        1e-6 * torch.rand(2, 12, 3),
        1e6 * torch.rand(2, 12, 3),
        torch.rand(12, 3).expand(2, 12, 3),
        torch.rand(2, 3, 12).transpose(1, 2),
        torch.rand(2, 3, 9),
        torch.zeros(0, 12, 3),
        torch.zeros(2, 0, 3),
        torch.zeros(2, 12, 0),
    ],
    ids=['zero', 'equal', 'tiny', 'huge', 'expanded', 'transposed', 'M>N', 'B=0', 'N=0', 'M=0'],
)
def test_odd_input_gives_finite_plans(name, cost):
    kwargs = dict(num_iter=100) if 'num_iter' in STRATEGIES[name] else {}
    before = cost.clone()
    plan = build(name, **kwargs).match(cost)
    assert plan.shape == (*cost.shape[:2], cost.size(2) + 1)
    assert torch.isfinite(plan).all() and (plan >= 0).all()
    assert torch.equal(cost, before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', STRATEGIES)
def test_half_precision_is_solved_in_float32(name, dtype):
    cost = torch.rand(2, 20, 4).to(dtype)
    assigner = build(name, **(dict(tol=1e-3) if 'tol' in STRATEGIES[name] else {}))
    plan = assigner.match(cost)
    assert plan.dtype == dtype
    assert torch.equal(plan, assigner.match(cost.float()).to(dtype))


@pytest.mark.parametrize('name', STRATEGIES)
def test_a_batch_without_any_ground_truth_is_all_background(name):
    plan = build(name).match(torch.rand(2, 10, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert plan[..., :4].eq(0).all()
    assert plan[..., 4].min() > 0.5 and plan[..., 4].max() < 1.5


@pytest.mark.parametrize(
    'name, kwargs, message',
    [
        ('SoftMinTarget', dict(source='gt'), "source must be one of .* got 'gt'"),
        ('SoftMinTarget', dict(reg=0.0), 'reg must be positive'),
        ('SoftMinTarget', dict(background_weight=-1.0), 'background_weight must be >= 0'),
        ('WeightedSum', dict(weights=[1.0, -1.0]), r'weights\[1\] must be >= 0'),
        ('WeightedSum', dict(weights=[1.0]), 'weights must hold one number for each strategy'),
        ('WeightedSum', dict(strategies=[dict(type='uotod_mmdet.HungarianAssigner', match_costs=COSTS)]), 'weights'),
        ('OTA', dict(iou_weight=-1.0), 'iou_weight must be >= 0'),
        ('Balanced', dict(gt_mass='dynamic'), "gt_mass must be a positive number or 'dynamic_k', got 'dynamic'"),
        ('Balanced', dict(solver='gurobi'), "solver must be 'own' or 'pot'"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(name, **kwargs)


@pytest.mark.parametrize('name', ['Balanced', 'Unbalanced'])
def test_solver_native_is_own_with_a_deprecation_warning(name):
    with pytest.warns(DeprecationWarning, match="solver='native' is now called solver='own'"):
        assigner = build(name, solver='native')
    assert assigner.solver == build(name).solver == 'own'
    with pytest.raises(ValueError, match="solver must be 'own' or 'pot', got 'gurobi'"):
        assigner.solver = 'gurobi'
