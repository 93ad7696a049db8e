"""The compiled part does what the torch code does, and the torch code does without it."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss, QualityFocalLoss
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from uotod_mmdet import native
from uotod_mmdet.costs import batch_cost, make_batch
from uotod_mmdet.losses import DistributionFocalLoss
from uotod_mmdet.losses.box_losses import box_losses
from uotod_mmdet.losses.pairs import classification_losses, expand, plan_statistics
from uotod_mmdet.ot import sinkhorn

compiled = pytest.mark.skipif(native.library is None, reason='no compiled part was built')
BY_TORCH = ('test_sinkhorn.py', 'test_costs.py', 'test_losses.py')


@pytest.fixture
def both(monkeypatch):
    """Calls a function with the compiled part and without it."""

    def call(function, *args, **kwargs):
        found = function(*args, **kwargs)
        with monkeypatch.context() as context:
            context.setattr(native, 'library', None)
            return found, function(*args, **kwargs)

    return call


@compiled
def test_one_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(zlib, 'crc32', lambda data: 1)
    with pytest.warns(UserWarning, match='was built from other sources .* Build it again: make env'):
        assert native._load() is None


@compiled
def test_the_tests_of_the_torch_code_pass_without_it():
    folder = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', *(str(folder / name) for name in BY_TORCH)],
        env={**os.environ, 'UOTOD_NATIVE': '0'},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]


def transport_problem(seed, batch=3, rows=70, columns=9, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    cost = spread * torch.rand(batch, rows, columns, generator=generator)
    a = torch.rand(batch, rows, generator=generator) * (torch.rand(batch, rows, generator=generator) < 0.8)
    b = torch.rand(batch, columns, generator=generator) * (torch.rand(batch, columns, generator=generator) < 0.8)
    b[:, -1] += 1
    a[:, 0] += 1
    return cost, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


@compiled
@pytest.mark.parametrize('weights', [(None, None), (1.0, 0.1), (1e3, 1e-2), (None, 0.1), (0.5, None), (0.0, 0.1)])
@pytest.mark.parametrize('reg', [0.3, 0.02, 0.003])
@pytest.mark.parametrize('options', [{}, dict(newton_after=None), dict(absorb_above=0.0, check_every=3)])
def test_plans_are_those_of_the_torch_code(both, weights, reg, options):
    cost, a, b = transport_problem(seed=round(1000 * reg))
    ours, plain = both(sinkhorn, cost, a, b, reg, *weights, num_iter=400, tol=1e-4, **options)
    assert torch.equal(ours.converged, plain.converged)
    assert (ours.num_iter - plain.num_iter).abs().max() <= 10
    exact = sinkhorn(cost.double(), a.double(), b.double(), reg, *weights, num_iter=2000, tol=1e-6)
    for result in (ours, plain):
        distance = (result.plan - exact.plan).abs().sum((1, 2))[result.converged]
        assert (distance <= 2e-3).all()
    assert ours.plan[a == 0].eq(0).all()
    assert ours.plan.transpose(1, 2)[b == 0].eq(0).all()


@compiled
def test_scalings_that_floats_do_not_hold_are_found_by_logsumexp(both):
    # One row that all columns avoid by far more than exp holds, and cheap ones: the scalings leave the float range.
    cost, a, b = transport_problem(seed=5, spread=1.0)
    cost[:, :20] += 500.0
    cost[:, :, 3] += 300.0
    ours, plain = both(sinkhorn, cost, a, b, 0.5, 50.0, 50.0, num_iter=60, tol=1e-6, newton_after=None)
    torch.testing.assert_close(ours.plan, plain.plan, rtol=1e-3, atol=1e-6)
    assert torch.isfinite(ours.plan).all()


@compiled
@pytest.mark.parametrize('weights', [(None, None), (1e3, 1e-2), (0.5, None)])
@pytest.mark.parametrize('columns', [1, 2, 7, 8, 9, 31, 40])
def test_newton_steps_are_those_of_the_torch_code(both, weights, columns):
    # At small reg the first steps leave the float range of the kernel that Sinkhorn left.
    for reg in (0.1, 0.002):
        cost, a, b = transport_problem(seed=columns, rows=150, columns=columns)
        ours, plain = both(sinkhorn, cost, a, b, reg, *weights, num_iter=100, tol=1e-4, newton_after=2, check_every=2)
        assert ours.converged.all() and plain.converged.all()
        assert ours.num_iter.sum() <= 1.5 * plain.num_iter.sum()  # equal but for roundings in the hardest
        torch.testing.assert_close(ours.plan, plain.plan, rtol=1e-2, atol=1e-5)


@compiled
def test_relative_regularisation_is_that_of_the_torch_code(both):
    cost, a, b = transport_problem(seed=3)
    cost *= torch.tensor([-2.0, 0.0, 30.0])[:, None, None]
    for weights in ((None, None), (10.0, 0.1)):
        ours, plain = both(sinkhorn, cost, a, b, 0.05, *weights, tol=1e-5, relative=True)
        torch.testing.assert_close(ours.plan, plain.plan, rtol=1e-3, atol=1e-6)
        for index, unit in enumerate(cost.abs().amax((1, 2)).tolist()):
            unit = unit or 1.0
            scaled = [None if weight is None else weight * unit for weight in weights]
            alone = sinkhorn(*(x[index : index + 1].double() for x in (cost, a, b)), 0.05 * unit, *scaled, tol=1e-6)
            torch.testing.assert_close(ours.plan[index].double(), alone.plan[0], rtol=1e-3, atol=1e-5)


@compiled
@pytest.mark.parametrize('background', [True, False])
def test_assignments_are_those_of_the_torch_code(both, background):
    assigner = TASK_UTILS.build(
        dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='IoUCost'), background=background)
    )
    cost, masks = torch.rand(4, 20, 25, generator=torch.Generator().manual_seed(0)), torch.arange(25)
    gt_mask, pred_mask = masks < torch.tensor([[0], [3], [20], [25]]), (masks[:20] % 7 > 0).expand(4, 20)
    found, expected = both(assigner.match, cost, gt_mask, pred_mask=pred_mask)
    assert torch.equal(found, expected)
    assert found[:, :, :-1].sum() == 0 + 3 + 17 + 17  # of 17 predictions that take part


COSTS = dict(
    iou=dict(type='IoUCost', iou_mode='iou', weight=2.0),
    giou=dict(type='IoUCost', iou_mode='giou', weight=2.0),
    log_iou=dict(type='uotod_mmdet.LogIoUCost', weight=0.7),
    l1=dict(type='BBoxL1Cost', box_format='xyxy', weight=5.0),
    l1_centred=dict(type='BBoxL1Cost', box_format='xywh', weight=5.0),
    softmax=dict(type='ClassificationCost', weight=1.5),
    focal=dict(type='FocalLossCost', weight=2.0),
    focal_gamma=dict(type='FocalLossCost', weight=2.0, gamma=1.5, alpha=0.4),
    center=dict(type='uotod_mmdet.PriorCenterCost'),
)


def random_boxes(*shape, generator):
    corner = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 40], -1)


@compiled
@pytest.mark.parametrize('names', [*([name] for name in COSTS), list(COSTS)], ids=lambda names: '+'.join(names))
@pytest.mark.parametrize('classes', [3, 8, 21])
@pytest.mark.parametrize('size', [3.0, 100.0])
def test_costs_are_those_of_the_torch_code(both, names, classes, size):
    generator = torch.Generator().manual_seed(classes)
    count = (0, 1, 9)
    predictions = dict(
        bboxes=random_boxes(3, 37, generator=generator),
        priors=random_boxes(3, 37, generator=generator),
        scores=size * torch.randn(3, 37, classes, generator=generator),
    )
    predictions['scores'][0, 0, 0] = -float('inf')  # masked by the model
    truths = [
        InstanceData(
            bboxes=random_boxes(m, generator=generator), labels=torch.randint(1, classes, (m,), generator=generator)
        )
        for m in count
    ]
    mask = torch.rand(3, 37, generator=generator) < 0.9
    metas = [dict(img_shape=(100, 120 + index)) for index in range(3)]
    batch = make_batch(predictions, truths, metas, pred_mask=mask)
    costs = [TASK_UTILS.build(COSTS[name]) for name in names]
    found, expected = both(batch_cost, costs, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    larger = torch.full((3, 37, 10), 7.0)
    batch_cost(costs, batch, larger[:, :, :-1])
    assert torch.equal(larger[:, :, :-1], found)
    assert larger[:, :, -1].eq(7).all()


def random_plan(seed, share=0.3, rows=50, columns=7):
    generator = torch.Generator().manual_seed(seed)
    plan = torch.rand(2, rows, columns, generator=generator) ** 4
    plan *= torch.rand(plan.shape, generator=generator) < share
    plan[:, :, -1] += 0.1
    return plan / plan.sum(2, keepdim=True)


@compiled
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('min_weight', [0.0, 1e-5, 0.1])
@pytest.mark.parametrize('gts', [6, 8, 21])
def test_pairs_and_statistics_are_those_of_the_torch_code(both, share, min_weight, gts):
    plan = random_plan(3, share, columns=gts + 1)
    found, expected = both(expand, plan, min_weight)
    for ours, plain in zip(found, expected):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(plain))
    gt_mask = torch.arange(gts) < torch.tensor([[gts], [2]])
    ours, plain = both(plan_statistics, found, gt_mask, torch.tensor([10, 20]))
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)
    ours, plain = both(found.sum_by_image, found.weight)
    torch.testing.assert_close(ours, plain)


def with_gradients(function, leaf, weight):
    leaf = leaf.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad((value * weight).sum(), leaf)
    return value.detach(), gradient


def assert_all_close(found, expected):
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=1e-6)


@compiled
@pytest.mark.parametrize('classes', [2, 8, 21])
@pytest.mark.parametrize(
    'loss',
    [
        CrossEntropyLoss(loss_weight=2.0),
        CrossEntropyLoss(class_weight=[0.5, 2.0]),
        FocalLoss(gamma=2.0),
        FocalLoss(gamma=1.5, alpha=0.4),
        QualityFocalLoss(beta=2.0),
    ],
    ids=['softmax', 'weighted softmax', 'focal', 'focal 1.5', 'quality'],
)
def test_classification_losses_are_those_of_the_torch_code(both, loss, classes):
    generator = torch.Generator().manual_seed(classes)
    pairs = expand(random_plan(4))
    scores = 4 * torch.randn(100, classes, generator=generator)
    labels = torch.randint(0, classes - 1, (len(pairs.rows),), generator=generator)
    if getattr(loss, 'class_weight', None) is not None:
        loss.class_weight = [0.5] * (classes - 1) + [2.0]
    background = classes if getattr(loss, 'use_sigmoid', False) else classes - 1
    quality = torch.rand(len(pairs.rows), generator=generator)
    weight = torch.rand(100, generator=generator)

    def losses(scores):
        return classification_losses(loss, scores, labels, background, pairs, lambda: quality)

    assert_all_close(*both(with_gradients, losses, scores, weight))


@compiled
@pytest.mark.parametrize('loss', [L1Loss(loss_weight=5.0), GIoULoss(loss_weight=2.0)], ids=['L1', 'GIoU'])
@pytest.mark.parametrize('form', ['corners', 'relative', 'pixels'])
def test_box_losses_are_those_of_the_torch_code(both, loss, form):
    generator = torch.Generator().manual_seed(0)
    pairs = expand(random_plan(6))
    boxes, truths = random_boxes(100, generator=generator), random_boxes(12, generator=generator)
    boxes[:4], truths[0] = truths[0], torch.tensor([10.0, 20, 30, 50])  # equal corners
    boxes[4:6] = torch.tensor([30.0, 50, 60, 70])  # that touches
    sizes = None
    if form != 'corners':
        sizes = torch.tensor([[120.0, 100, 120, 100], [90.0, 110, 90, 110]])
        boxes = torch.rand(100, 4, generator=generator) * 0.5 + 0.2
    weight = torch.rand(len(pairs.rows), generator=generator)

    def losses(boxes):
        return box_losses(loss, boxes, truths, pairs, sizes, relative=form == 'relative')

    assert_all_close(*both(with_gradients, losses, boxes, weight))


@compiled
@pytest.mark.parametrize('bins', [2, 8, 17, 33])
def test_distribution_focal_losses_are_those_of_the_torch_code(both, bins):
    generator = torch.Generator().manual_seed(bins)
    logits = 5 * torch.randn(40, bins, generator=generator)
    target = torch.rand(40, generator=generator) * (bins - 1)
    target[0], target[1] = 0, bins - 1
    loss = DistributionFocalLoss(reduction='none')
    weight = torch.rand(40, generator=generator)
    assert_all_close(*both(with_gradients, lambda logits: loss(logits, target), logits, weight))


@compiled
def test_threads_make_no_difference():
    cost, a, b = transport_problem(seed=1)
    plan = random_plan(9)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((sinkhorn(cost, a, b, 0.05).plan, *expand(plan)[:5]))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        for first, other in zip(results[0], others):
            assert torch.equal(first, other)


@compiled
def test_gradients_of_plans_are_not_lost():
    plan = random_plan(2).requires_grad_()
    pairs = expand(plan)
    boxes = random_boxes(100, generator=torch.Generator().manual_seed(0))
    loss = box_losses(GIoULoss(), boxes, boxes[:12] + 1, pairs).sum()
    scores = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros_like(pairs.rows)
    loss = loss + classification_losses(CrossEntropyLoss(), scores, labels, 4, pairs, lambda: None).sum()
    (gradient,) = torch.autograd.grad(loss, plan)
    assert gradient.abs().sum() > 0
    cost, a, b = transport_problem(seed=0)
    result = sinkhorn(cost.requires_grad_(), a, b, 0.1, num_iter=10)
    assert result.plan.requires_grad
