"""The solver against POT and the paper's worked example."""

import math

import numpy as np
import ot as pot
import pytest
import torch

from uotod_mmdet.ot import assignment, sinkhorn

# De Plaen et al., CVPR 2023, Figure 1: cost 1 - GIoU of five predictions to two ground truths; background 0.8.
FIGURE_COST = [[0.61, 0.96], [1.34, 0.88], [0.88, 0.89], [0.40, 0.65], [1.11, 0.73]]
# reg_pred, reg_target, and N times the optimum with reg 0.05, solved by POT in float64 to 1e-14.
FIGURE_PLANS = {
    'unbalanced to ground truths': (
        100,
        0.01,
        [
            [0.966083144, 0.001008983, 0.027571121],
            [1.3441e-05, 0.152364413, 0.840587297],
            [0.120271422, 0.112780596, 0.759963196],
            [0.988689695, 0.007629893, 0.00042312],
            [0.000340498, 0.779261902, 0.214042136],
        ],
    ),
    'balanced': (
        None,
        None,
        [
            [0.265671963, 0.011645839, 0.722682198],
            [1.55e-07, 0.073917015, 0.926082829],
            [0.001556109, 0.061244579, 0.937199312],
            [0.732765361, 0.237344376, 0.029890263],
            [6.411e-06, 0.615848191, 0.384145398],
        ],
    ),
    'unbalanced to predictions': (
        0.01,
        100,
        [
            [0.01880115, 0.002030036, 0.627784661],
            [9e-09, 0.010082949, 0.629540088],
            [8.5193e-05, 0.008258975, 0.629826395],
            [0.977853083, 0.780156762, 0.489624433],
            [8.19e-07, 0.193835083, 0.60253844],
        ],
    ),
}


def figure_problem(dtype):
    cost = torch.tensor(FIGURE_COST, dtype=dtype)
    cost = torch.cat([cost, torch.full((5, 1), 0.8, dtype=dtype)], 1)
    return cost[None], torch.full((1, 5), 0.2, dtype=dtype), torch.tensor([[0.2, 0.2, 0.6]], dtype=dtype)


def random_problem(rng, num_rows, num_gts):
    """Cost and marginals of a detection-like problem, float64."""
    cost = torch.from_numpy(rng.random((1, num_rows, num_gts + 1)))
    rows = torch.full((1, num_rows), 1 / num_rows, dtype=torch.float64)
    columns = torch.full((1, num_gts + 1), 1 / num_rows, dtype=torch.float64)
    columns[0, -1] = (num_rows - num_gts) / num_rows
    return cost, rows, columns


@pytest.mark.parametrize('name', FIGURE_PLANS)
@pytest.mark.parametrize('dtype, tol, bound', [(torch.float64, 1e-12, 1e-6), (torch.float32, 1e-5, 1e-4)])
def test_plans_of_the_papers_figure_are_reproduced(name, dtype, tol, bound):
    reg_a, reg_b, expected = FIGURE_PLANS[name]
    result = sinkhorn(*figure_problem(dtype), 0.05, reg_a, reg_b, tol=tol)
    assert result.converged.all()
    assert (5 * result.plan[0] - torch.tensor(expected, dtype=dtype)).abs().max() < bound


# Scaling alone, absorbing at every look; Newton's method from the first look on; and as by default.
WAYS = [dict(check_every=1, newton_after=None, absorb_above=0.0), dict(check_every=1, newton_after=1), {}]


@pytest.mark.parametrize('way', WAYS, ids=['absorbing', 'newton', 'default'])
@pytest.mark.parametrize('seed', range(12))
def test_balanced_plan_agrees_with_pot(seed, way):
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(2, 120))
    num_gts = int(rng.integers(0, min(num_rows, 30)))
    reg = 10 ** rng.uniform(-1.5, 0)
    cost, rows, columns = random_problem(rng, num_rows, num_gts)
    result = sinkhorn(cost, rows, columns, reg, tol=1e-11, num_iter=5000, **way)
    expected = pot.sinkhorn(
        rows[0].numpy(),
        columns[0].numpy(),
        cost[0].numpy(),
        reg,
        method='sinkhorn_log',
        numItermax=20000,
        stopThr=1e-13,
        warn=False,
    )
    assert result.converged.all()
    assert num_rows * np.abs(result.plan[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize('way', WAYS, ids=['absorbing', 'newton', 'default'])
@pytest.mark.parametrize('seed', range(12))
def test_unbalanced_plan_agrees_with_pot(seed, way):
    rng = np.random.default_rng(100 + seed)
    num_rows = int(rng.integers(2, 120))
    num_gts = int(rng.integers(0, min(num_rows, 30)))
    reg = 10 ** rng.uniform(-1.5, 0)
    reg_a, reg_b = 10 ** rng.uniform(-3, 1.5, 2)
    cost, rows, columns = random_problem(rng, num_rows, num_gts)
    result = sinkhorn(cost, rows, columns, reg, reg_a, reg_b, tol=1e-11, num_iter=5000, **way)
    expected = pot.unbalanced.sinkhorn_unbalanced(
        rows[0].numpy(),
        columns[0].numpy(),
        cost[0].numpy(),
        reg,
        reg_m=(reg_a, reg_b),
        reg_type='entropy',
        numItermax=20000,
        stopThr=1e-14,
    )
    assert result.converged.all()
    assert num_rows * np.abs(result.plan[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize('reg_a, reg_b', [(None, None), (None, 10.0), (2.0, 10.0)])
@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_columns_that_nearly_all_rows_avoid_are_filled(dtype, tol, reg_a, reg_b):
    """Fewer cheap rows than a column needs: thousands of iterations for Sinkhorn, some dozens with Newton's method."""
    rng = np.random.default_rng(0)
    cost = torch.from_numpy(rng.random((2, 300, 6))).to(dtype) - 0.5
    cost[:, 4:, :5] += 20.0  # nine rows' worth of mass, four cheap rows each
    cost[:, :, -1] = 0.0
    rows = torch.full((2, 300), 1 / 300, dtype=dtype)
    columns = torch.tensor([9.0] * 5 + [300 - 45], dtype=dtype).expand(2, -1) / 300
    result = sinkhorn(cost, rows, columns, 0.03, reg_a, reg_b, tol=tol, num_iter=200)
    assert result.converged.all() and result.num_iter.max() < 150
    slow = sinkhorn(cost, rows, columns, 0.03, reg_a, reg_b, tol=tol, num_iter=200, newton_after=None)
    assert not slow.converged.all()
    if reg_a is None:
        assert (result.plan.sum(2) - rows).abs().max() < 2 * tol / 300
    if reg_b is None:
        assert (result.plan.sum(1) - columns).abs().max() < 2 * tol


@pytest.mark.parametrize('reg_a, reg_b', [(None, None), (None, 0.5), (10.0, 0.01), (0.0, 1.0), (1.0, 0.0)])
def test_a_plan_depends_neither_on_batch_neighbours_nor_on_padding(reg_a, reg_b):
    rng = np.random.default_rng(0)
    alone, padded_cost, padded_columns = [], [], []
    for num_gts in (0, 3, 7):
        cost, rows, columns = random_problem(rng, 40, num_gts)
        alone.append(sinkhorn(cost, rows, columns, 0.05, reg_a, reg_b, tol=1e-5).plan[0])
        padding = 7 - num_gts
        padded_cost.append(torch.cat([cost.new_zeros(40, padding), cost[0]], 1))
        padded_columns.append(torch.cat([columns.new_zeros(padding), columns[0]]))
    together = sinkhorn(
        torch.stack(padded_cost), rows.expand(3, -1), torch.stack(padded_columns), 0.05, reg_a, reg_b, tol=1e-5
    ).plan
    for plan, single in zip(together, alone):
        padding = 8 - single.size(1)
        assert plan[:, :padding].eq(0).all()
        assert 40 * (plan[:, padding:] - single).abs().max() < 1e-10


def test_infinite_weights_mean_balanced():
    cost, rows, columns = random_problem(np.random.default_rng(0), 30, 5)
    constraint = sinkhorn(cost, rows, columns, 0.1).plan
    assert torch.equal(sinkhorn(cost, rows, columns, 0.1, math.inf, math.inf).plan, constraint)


@pytest.mark.parametrize('num_rows, num_gts', [(1, 1), (60, 6), pytest.param(8732, 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize('weights', [(None, None), (1e3, 1e-3), (1e-3, 1e3), (None, 1e-3), (0.0, None)])
def test_extreme_costs_give_finite_plans_and_an_honest_verdict(num_rows, num_gts, weights):
    cost, rows, columns = random_problem(np.random.default_rng(0), num_rows, num_gts)
    rows, columns = rows.float(), columns.float()
    for reg in (1e-4, 1e-2, 1.0, 10.0):
        for scale in (1e-3, 1.0, 1e4):
            result = sinkhorn((scale * cost).float(), rows, columns, reg, *weights, num_iter=30, tol=1e-3)
            assert torch.isfinite(result.plan).all(), (reg, scale)
            assert (result.plan >= 0).all()
            assert torch.equal(result.converged, result.error <= 1e-3)
            if result.converged.all() and weights[0] is None:
                assert ((result.plan.sum(2) - rows).abs() / rows).max() < 2e-3
            if result.converged.all() and weights[1] is None:
                assert ((result.plan.sum(1) - columns).abs() / columns).nan_to_num().max() < 2e-3


def test_stopping_early_is_reported():
    cost, rows, columns = random_problem(np.random.default_rng(0), 80, 20)
    result = sinkhorn(cost, rows, columns, 1e-3, num_iter=5, tol=1e-9)
    assert not result.converged.any()
    assert result.num_iter.tolist() == [5]
    row_error = (result.plan.sum(2) / rows).log().abs().max()
    assert row_error > 1e-9
    assert torch.allclose(result.error, row_error, rtol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('levels', [None, 3])
def test_assignment_is_scipys_also_where_costs_tie(dtype, levels):
    from scipy.optimize import linear_sum_assignment

    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((20, 9), (9, 20), (7, 7), (1, 5), (5, 1)):
        cost = torch.randn(6, rows, columns + 1, generator=generator, dtype=dtype)[:, :, :-1]
        if levels:
            cost = (cost * levels).round()
        row_mask = torch.rand(6, rows, generator=generator) < 0.8
        column_mask = torch.rand(6, columns, generator=generator) < 0.6
        row_mask[0], column_mask[1] = True, False
        found = assignment(cost, column_mask, row_mask)
        for index in range(6):
            real_rows, real_columns = row_mask[index].nonzero()[:, 0], column_mask[index].nonzero()[:, 0]
            chosen_rows, chosen = linear_sum_assignment(cost[index][real_rows][:, real_columns].numpy())
            expected = torch.full((rows,), -1)
            expected[real_rows[chosen_rows]] = real_columns[chosen]
            assert torch.equal(found[index], expected)


def test_assignment_of_more_columns_than_rows_uses_every_row_once():
    found = assignment(torch.rand(1, 3, 8, generator=torch.Generator().manual_seed(0)))
    assert found.min() >= 0
    assert len(found[0].unique()) == 3


def read_nothing(monkeypatch):
    """Take the ways of a GPU, where the host waits for no value."""
    monkeypatch.setattr('uotod_mmdet.ops.native.library', None)
    monkeypatch.setattr('uotod_mmdet.ops.deferred.host_may_wait', lambda tensor: False)
    for place in ('deferred', 'transport_problem'):
        monkeypatch.setattr(f'uotod_mmdet.ops.{place}.act_if', lambda flag, act: None)


@pytest.mark.parametrize('read', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('reg_a, reg_b', [(None, None), (0.1, None), (None, 0.1), (0.1, 0.1)])
@pytest.mark.parametrize('empty', ['a', 'b', 'ab'])
def test_a_side_without_mass_gives_a_plan_of_zero_and_leaves_its_neighbour(
    empty, reg_a, reg_b, dtype, read, monkeypatch
):
    if not read:  # as on a GPU, where flags are read later
        read_nothing(monkeypatch)
    cost = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    a, b = torch.full((2, 4), 1 / 4, dtype=dtype), torch.full((2, 3), 1 / 3, dtype=dtype)
    alone = sinkhorn(cost[1:], a[1:], b[1:], 0.5, reg_a, reg_b)
    a[0], b[0] = a[0] * ('a' not in empty), b[0] * ('b' not in empty)
    found = sinkhorn(cost, a, b, 0.5, reg_a, reg_b)
    assert not found.plan[0].any()
    torch.testing.assert_close(found.plan[1:], alone.plan, rtol=1e-3, atol=1e-5)
    assert not found.error[1].isnan()


@pytest.mark.parametrize('way', ['compiled', 'torch', 'torch that reads nothing'])
def test_ground_truths_whose_mass_float32_cannot_hold_converge(way, monkeypatch):
    if way != 'compiled':
        monkeypatch.setattr('uotod_mmdet.ops.native.library', None)
    if way == 'torch that reads nothing':
        read_nothing(monkeypatch)
    # All predictions prefer the background by 300 times reg, and ground truths are cheap to leave out.
    cost = torch.rand(1, 40, 20, generator=torch.Generator().manual_seed(0)) + 2
    cost[:, :, -1] = 0.5
    a, b = torch.full((1, 40), 1 / 40), torch.full((1, 20), 1 / 40)
    b[:, -1] = 21 / 40
    reg, reg_a, reg_b = 0.005, 1e3, 1e-2
    found = sinkhorn(cost, a, b, reg, reg_a, reg_b, num_iter=500, tol=1e-5)
    # The same in float64, by logsumexp alone.
    log_kernel, log_a, log_b = -cost.double() / reg, a.double().log(), b.double().log()
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(500):
        f = reg_a / (reg_a + reg) * (log_a - (log_kernel + g[:, None]).logsumexp(2))
        g = reg_b / (reg_b + reg) * (log_b - (log_kernel + f[:, :, None]).logsumexp(1))
    exact = (log_kernel + f[:, :, None] + g[:, None]).exp()
    assert 0 < exact[:, :, :-1].sum((0, 1)).max() < torch.finfo(torch.float32).tiny
    assert found.converged.all()
    torch.testing.assert_close(found.plan.double(), exact, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('compiled', [True, False])
@pytest.mark.parametrize('scale', [None, 300.0, 1e-30])
def test_a_plan_beyond_its_dtype_is_refused(compiled, scale, monkeypatch):
    if not compiled:
        monkeypatch.setattr('uotod_mmdet.ops.native.library', None)
    cost = torch.tensor([[[-1.07, 0.5], [0.1, -0.2]]])
    a = b = torch.full((1, 2), 0.5)
    scale = None if scale is None else torch.full((1,), scale)
    # Both sides are free: the plan is exp(-cost / reg).
    with pytest.raises(ValueError, match='cost is torch.float32, which does not hold the largest entry of the plan'):
        sinkhorn(cost, a, b, 0.01, 0.0, 0.0, scale=scale)
    found = sinkhorn(cost.double(), a, b, 0.01, 0.0, 0.0).plan
    torch.testing.assert_close(found, (-cost.double() / 0.01).exp())
    found = sinkhorn(cost, a, b, 0.02, 0.0, 0.0).plan
    torch.testing.assert_close(found, (-cost / 0.02).exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_is_no_number_and_no_tensor_is_named(dtype):
    given = dict(cost=torch.rand(2, 4, 3, dtype=dtype), a=torch.full((2, 4), 0.25), b=torch.full((2, 3), 1 / 3))
    given.update(reg=0.5, reg_a=0.1, reg_b=0.1)
    for name in ('reg', 'reg_a', 'reg_b', 'tol', 'absorb_above'):
        for value in ('0.5', [0.5], np.array([0.5])):
            with pytest.raises(TypeError, match=f'^{name} must be a number'):
                sinkhorn(**{**given, name: value})
        with pytest.raises(
            ValueError, match=f'^{name} must (be (a number|finite|positive|>= 0)|not be negative or NaN)'
        ):
            sinkhorn(**{**given, name: float('nan')})
    for name in ('reg', 'reg_a', 'reg_b'):
        with pytest.raises(ValueError, match=rf'^{name} must be a number or a real tensor of shape \(2,\)'):
            sinkhorn(**{**given, name: torch.ones(3)})
        expected = sinkhorn(**{**given, name: 0.5}).plan
        for value in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.full((2,), 0.5)):
            torch.testing.assert_close(sinkhorn(**{**given, name: value}).plan, expected)
    for name in ('cost', 'a', 'b'):
        with pytest.raises(TypeError, match=f'^{name} must be a tensor, got list'):
            sinkhorn(**{**given, name: given[name].tolist()})
    for name in ('cost', 'column_mask', 'row_mask'):
        with pytest.raises(TypeError, match=f'^{name} must be a tensor, got list'):
            assignment(**{'cost': given['cost'], name: [[True]]})
