"""Pictures of a matching: what is drawn, by the artists of the figure; no pixels."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from test_recorder import detector_of, items_of

from uotod_mmdet.visualization import matchings_of
from uotod_mmdet.visualization.figures import draw_cost, gt_colors, heaviest_rows, matching_figure, rendered
from uotod_mmdet.visualization.tags import Tags

COSTS = [dict(type='FocalLossCost'), dict(type='IoUCost', iou_mode='giou')]
SOFT = dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', match_costs=COSTS, reg=0.2)
FAR = [*COSTS, dict(type='uotod_mmdet.InsideGTCost', weight=23.0)]


def drawn(head, assigner, num_boxes=3):
    """A figure, its panels (scene, cost, plan), the record and the image."""
    (item,) = items_of((num_boxes,))
    ((*_, record),) = matchings_of(detector_of(head, assigner=assigner), [item])
    figure = matching_figure(item, record, max_rows=20)
    return figure, figure.get_axes(), record, item


def solid(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_linestyle() in ('-', 'solid')]


@pytest.mark.slow
@pytest.mark.parametrize('head', ['DABDETRHead', 'DINOHead'])
def test_boxes_of_queries_are_as_thick_and_opaque_as_their_mass(head):
    _, (scene, *_), record, _ = drawn(head, SOFT)
    pairs = record.plan[:, :3]
    rows, columns = (pairs > 0.05).nonzero(as_tuple=True)
    expected = sorted(
        (*record.batch.bboxes[0, row].tolist(), min(float(pairs[row, column]), 1), *gt_colors(3)[column])
        for row, column in zip(rows, columns)
    )
    assert len(expected) > 3
    found = []
    for patch in solid(scene):
        (x, y), share = patch.get_xy(), patch.get_alpha()
        found.append((x, y, x + patch.get_width(), y + patch.get_height(), share, *to_rgb(patch.get_edgecolor()[:3])))
        assert patch.get_linewidth() == pytest.approx(0.5 + 2 * share)
    np.testing.assert_allclose(sorted(found), expected, rtol=1e-4, atol=1e-4)
    background = 100 * float(record.plan[:, 3].sum() / record.plan.sum())
    assert f'background: {background:.1f} % of the mass' in scene.get_title()


@pytest.mark.slow
def test_positions_of_a_dense_head_are_large_on_coarse_levels_and_opaque_by_mass():
    balanced = dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=COSTS, reg=0.02, gt_mass=9)
    _, (scene, *_), record, _ = drawn('RetinaHead', balanced)
    pairs = record.plan[:, :3]
    priors = record.batch.priors[0]
    mass = {}  # of the nine anchors of a position together
    for row, column in (pairs > 0.05).nonzero().tolist():
        x, y = ((priors[row, :2] + priors[row, 2:]) / 2).tolist()
        key = round(x, 2), round(y, 2), int(record.levels[row]), column
        mass[key] = mass.get(key, 0) + float(pairs[row, column])
    dots = [line for line in scene.lines if line.get_marker() == 'o']
    found = {
        (round(float(x), 2), round(float(y), 2), round((dot.get_markersize() - 5) / 2), dot.get_markerfacecolor()): dot
        for dot in dots
        for x, y in [(dot.get_xdata()[0], dot.get_ydata()[0])]
    }
    expected = {(x, y, level, gt_colors(3)[gt]): min(value, 1) for (x, y, level, gt), value in mass.items()}
    assert len(expected) > 6
    assert {key: dot.get_alpha() for key, dot in found.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('num_boxes', [3, 19])
def test_the_plan_has_numbers_above_a_hundredth_and_labelled_axes(num_boxes):
    figure, (_, cost, plan), record, _ = drawn('GFLHead', dict(SOFT, match_costs=FAR), num_boxes)
    shown = heaviest_rows(record.plan.numpy(), 20)
    assert [label.get_text() for label in plan.get_yticklabels()] == [str(index + 1) for index in shown]
    values = record.plan.numpy()[shown]
    texts = {tuple(map(int, text.get_position()[::-1])): float(text.get_text()) for text in plan.texts}
    expected = {(row, column): round(float(values[row, column]), 2) for row, column in np.argwhere(values > 0.01)}
    assert texts == pytest.approx(expected)
    assert 'mass' in plan.get_title()
    for axes in (cost, plan):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ('ground truth', 'prediction')
    assert [label.get_text() for label in plan.get_xticklabels()] == [*(chr(65 + i) for i in range(num_boxes)), 'bg']
    assert all(axes.has_data() for axes in figure.get_axes())  # no empty panel


def test_one_large_cost_does_not_take_the_difference_from_the_others():
    plan = np.array([[0.9, 0.1, 0, 0], [0, 0.6, 0.4, 0], [0, 0, 0.8, 0.2]])
    cost = np.array([[0.2, 0.9, 23.0], [23.0, 0.5, 0.7], [23.1, 23.0, 0.4]])
    axes = Figure().subplots()
    draw_cost(axes, cost, plan, list('123'), list('ABC'))
    shades = np.asarray(axes.images[0].get_array())
    assert shades[0, 0] - shades[0, 1] > 0.3 and shades[0, 0] - shades[1, 1] > 0.15
    assert (shades[cost > 20] == 0).all()
    assert (np.argsort(-shades[plan[:, :3] > 0]) == np.argsort(cost[plan[:, :3] > 0])).all()


def test_names_are_never_over_one_another():
    axes = Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 400), ylim=(400, 0))
    tags = Tags(axes, 100, 400, 400)
    rng = np.random.default_rng(0)
    placed = [tags.put((x, y, x + 40, y + 30), '12', (1, 0, 0), 7) for x, y in rng.uniform(0, 360, (120, 2))]
    rendered(axes.figure)  # so that the extents are known
    boxes = np.array([text.get_window_extent().extents for text in axes.texts])
    assert 30 < sum(placed) == len(boxes) < 120
    apart = (boxes[:, None, :2] >= boxes[None, :, 2:] - 1).any(2)  # to a pixel
    apart |= apart.T
    assert apart[~np.eye(len(boxes), dtype=bool)].all()
    assert (boxes > -1).all() and (boxes < 401).all()


@pytest.mark.slow
def test_a_matching_without_ground_truths_or_costs_is_drawn():
    atss = dict(type='ATSSAssigner', topk=9)
    items = items_of((0, 2))
    for item, (record,) in zip(items, matchings_of(detector_of('GFLHead', assigner=atss), items)):
        figure = matching_figure(item, record)
        assert len(figure.get_axes()) == 2  # no cost
        assert rendered(figure).std() > 10
    assert torch.equal(record.plan.sum(1), torch.ones(len(record.plan)))
