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
from scipy.optimize import linear_sum_assignment

from uotod_mmdet.costs import batch_cost, costs_and_background, make_batch
from uotod_mmdet.losses import DistributionFocalLoss, MatchabilityAwareLoss, PositionSupervisedLoss
from uotod_mmdet.ops import native
from uotod_mmdet.ops.assignment import KERNEL as ASSIGN
from uotod_mmdet.ops.box_losses import KERNEL as BOX_LOSSES
from uotod_mmdet.ops.focal_rows import KERNEL as FOCAL_ROWS
from uotod_mmdet.ops.pair_costs import KERNEL as PAIR_COSTS
from uotod_mmdet.ops.plan import KERNEL as PLAN_PAIRS
from uotod_mmdet.ops.softmax_rows import KERNEL as SOFTMAX_ROWS
from uotod_mmdet.ot import assignment, sinkhorn
from uotod_mmdet.plan import box_losses, classification_losses, expand, plan_statistics

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
    with pytest.warns(
        UserWarning, match='was built from other sources .* Remove that file and build it again: make env'
    ):
        assert native._load() is None


@pytest.mark.slow
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


COSTS_CONFIGS = dict(
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
@pytest.mark.parametrize(
    'names', [*([name] for name in COSTS_CONFIGS), list(COSTS_CONFIGS)], ids=lambda names: '+'.join(names)
)
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
    costs = [TASK_UTILS.build(COSTS_CONFIGS[name]) for name in names]
    found, expected = both(batch_cost, costs, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    larger = costs_and_background(costs, batch, 7.0)
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
    ours, plain = both(found.sum_by_row, found.weight)
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
        MatchabilityAwareLoss(),
        PositionSupervisedLoss(),
    ],
    ids=['softmax', 'weighted softmax', 'focal', 'focal 1.5', 'quality', 'matchability-aware', 'position-supervised'],
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


# The boundary: what is not as declared never reaches a kernel.


def softmax_case():
    given = dict(scores=torch.zeros(3, 5), label=4, label_weight=torch.ones(3), rows=torch.tensor([0, 2]))
    given.update(labels=torch.tensor([1, 0]), weights=torch.ones(2))
    given.update(losses=torch.empty(3), log_sums=torch.empty(3, 2), grad=None, gradient=None)
    return given


@compiled
@pytest.mark.parametrize(
    'wrong',
    [
        dict(scores=torch.zeros(3, 5, dtype=torch.float64)),
        dict(scores=torch.zeros(3, 5, dtype=torch.int64)),
        dict(scores=torch.zeros(5, 3).t()),
        dict(scores=torch.zeros(15)),
        dict(label=4.0),
        dict(label='4'),
        dict(rows=torch.zeros(2, dtype=torch.int32)),
        dict(weights=torch.ones(3)),
        dict(log_sums=None),
        dict(labels=torch.zeros(2, dtype=torch.long), more=1),
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_kernel_refuses_what_is_not_as_declared(wrong):
    SOFTMAX_ROWS(**softmax_case())
    with pytest.raises(TypeError, match='uotod_softmax_rows'):
        SOFTMAX_ROWS(**{**softmax_case(), **wrong})


@compiled
def test_sizes_of_the_same_name_must_agree():
    mask = dict(gt_mask=torch.ones(2, 5, dtype=torch.bool), cost=torch.empty(2, 3, 5))
    assert PAIR_COSTS.bind(**mask) is not None
    assert PAIR_COSTS.bind(**{**mask, 'gt_mask': torch.ones(1, 5, dtype=torch.bool)}) is None
    assert PAIR_COSTS.bind(**{**mask, 'gt_mask': torch.ones(2, 5)}) is None
    assert PAIR_COSTS.bind(**{**mask, 'cost': torch.empty(2, 3, 5, dtype=torch.float64)}) is None


@compiled
def test_rows_may_lie_apart_but_not_overlap_or_lie_irregularly():
    whole = torch.empty(2, 3, 6)
    assert ASSIGN.bind(cost=whole[:, :, :-1]) is not None
    assert ASSIGN.bind(cost=whole[:, :2, :-1]) is None  # the images lie farther apart than their rows say
    assert ASSIGN.bind(cost=whole[:, :, ::2]) is None
    assert ASSIGN.bind(cost=torch.empty(2, 1, 5).expand(2, 3, 5)) is None
    assert ASSIGN.bind(cost=whole.transpose(0, 1)) is None


@compiled
@pytest.mark.parametrize(
    'odd',
    [
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device='meta'),
        torch._neg_view(torch.ones(2, 3)),
        torch.ones(2, 3).as_subclass(type('Wrapped', (torch.Tensor,), {})),
    ],
    ids=['sparse', 'meta', 'negated view', 'subclass'],
)
def test_tensors_without_plain_memory_are_not_taken(odd):
    assert SOFTMAX_ROWS.bind(scores=odd) is None


@compiled
@pytest.mark.parametrize(
    'change',
    [dict(labels=torch.tensor([5, 0])), dict(labels=torch.tensor([-1, 0])), dict(rows=torch.tensor([1, 3])),
     dict(rows=torch.tensor([2, 0])), dict(label=7)],
    ids=['label too large', 'label negative', 'row outside', 'rows out of order', 'common label outside'],
)  # fmt: skip
def test_indices_are_not_followed_out_of_bounds(change):
    with pytest.raises(IndexError, match='uotod_softmax_rows'):
        SOFTMAX_ROWS(**{**softmax_case(), **change})


@compiled
def test_indices_of_every_other_kernel_are_checked_too():
    index, one = torch.tensor([0, 9]), torch.ones(2)
    wrong_pairs = dict(preds=torch.ones(3, 4), truths=torch.ones(3, 4), sizes=None, pair_images=index, weights=one)
    wrong_pairs.update(scale=1.0, eps=1e-6, losses=torch.empty(2), grad=None, gradient=None)
    far = torch.tensor([0, 2**62 + 10])
    for wrong in ((index, index * 0), (index * 0, index), (-index, index * 0), (far, index * 0), (index * 0, far)):
        with pytest.raises(IndexError, match='uotod_box_losses'):
            BOX_LOSSES(**wrong_pairs, pair_rows=wrong[0], pair_truths=wrong[1])
    zeros, jumps = torch.zeros(4, dtype=torch.long), torch.tensor([0, 2**62 + 10, -(2**62) - 11, 0])  # differences wrap
    more = dict(pair_images=zeros, weights=torch.ones(4), losses=torch.empty(4))
    for rows in (jumps, torch.tensor([0, 2, 1, 2]), torch.tensor([0, -1, 0, 0])):
        with pytest.raises(IndexError, match='uotod_box_losses'):
            BOX_LOSSES(**{**wrong_pairs, **more}, pair_rows=rows, pair_truths=zeros)
    sizes = torch.ones(2, 4)
    with pytest.raises(IndexError, match='uotod_box_losses'):
        BOX_LOSSES(**{**wrong_pairs, 'sizes': sizes}, pair_rows=index * 0, pair_truths=index * 0)
    with pytest.raises(IndexError, match='uotod_focal_rows'):
        FOCAL_ROWS(
            logits=torch.ones(2, 2), gamma=2.0, weights=one, index=index, entry_losses=one, entry_slopes=None,
            losses=torch.empty(2), gradient=None,
        )  # fmt: skip
    with pytest.raises(IndexError, match='uotod_pair_costs'):
        PAIR_COSTS(
            terms=torch.tensor([[5.0, 1, 0, 0, 0, 0]]).double(), boxes=None, gt_boxes=None, scores=torch.ones(1, 3, 4),
            labels=torch.tensor([[0, 4]]), sizes=None, given=None, gt_mask=torch.ones(1, 2, dtype=torch.bool),
            pred_mask=None, background=0.0, cost=torch.empty(1, 3, 3),
        )  # fmt: skip


@compiled
@pytest.mark.parametrize('counts', [[0, 0], [3, 0], [2, 1], [1, 4], [-1, 2], [-(2**62), 2**62], [2**62, 2**62]])
def test_counts_that_are_not_of_the_plan_are_refused(counts):
    plan = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    rows, gts, images = torch.zeros(3, 3, dtype=torch.long)
    given = dict(plan=plan, min_weight=0.0, rows=rows, gts=gts, images=images, weights=torch.zeros(3))
    PLAN_PAIRS(**given, counts=torch.tensor([3, 0]), background=torch.empty(4))
    assert rows.tolist() == [0, 1, 1] and gts.tolist() == [0, 0, 1] and images.tolist() == [0, 0, 0]
    for background in (torch.empty(4), torch.empty(3), torch.empty(5)):
        if counts != [3, 0] or len(background) != 4:
            with pytest.raises(IndexError, match='uotod_plan_pairs'):
                PLAN_PAIRS(**given, counts=torch.tensor(counts), background=background)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.int64, torch.int32])
def test_expand_lists_the_pairs_of_a_plan_of_any_dtype(dtype):
    plan = torch.tensor([[[1, 0, 0], [0, 0, 1], [0, 1, 0]]])
    pairs = expand(plan.to(dtype))
    assert pairs.rows.tolist() == [0, 2] and pairs.gts.tolist() == [0, 1]
    assert pairs.weight.tolist() == [1, 1] and pairs.background.tolist() == [0, 1, 0]


@compiled
def test_vmap_gives_the_right_plans_or_a_sentence():
    cost, a, b = transport_problem(seed=0, batch=2)
    expected = sinkhorn(cost, a, b, 0.1, num_iter=20, newton_after=None, tol=1e-9).plan

    def solve(cost, a, b):
        return sinkhorn(cost[None], a[None], b[None], 0.1, num_iter=20, newton_after=None, tol=1e-9).plan[0]

    found = torch.func.vmap(solve)(cost, a, b)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('loss', [L1Loss(), GIoULoss()], ids=['L1', 'GIoU'])
def test_what_backward_needs_must_not_be_changed_before(loss):
    pairs = expand(random_plan(6))
    boxes = random_boxes(100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = box_losses(loss, boxes, random_boxes(12, generator=torch.Generator().manual_seed(1)), pairs)
    pairs.weight.zero_()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        losses.sum().backward()


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(num_iter=10.5), 'num_iter must be a whole number .*, got 10.5'),
        (dict(num_iter=1e30), 'num_iter must be a whole number of at most'),
        (dict(num_iter=0), 'num_iter must be >= 1, got 0'),
        (dict(check_every='5'), 'check_every must be a number'),
        (dict(tol=-1e-6), 'tol must be >= 0'),
        (dict(reg=0.0), 'reg must be positive'),
        (dict(reg=float('nan')), 'reg must be positive'),
        (dict(reg_a=-1.0), 'reg_a must not be negative'),
        (dict(reg_b=float('nan')), 'reg_b must not be negative or NaN'),
        (dict(cost=torch.full((1, 2, 2), float('nan'))), 'cost holds 4 NaN'),
        (dict(cost=torch.ones(1, 2, 2, dtype=torch.long)), 'cost must be float32 or float64'),
        (dict(a=torch.tensor([[-0.5, 1.5]])), 'a must not be negative'),
        (dict(b=torch.tensor([[float('inf'), 0.5]])), 'b holds 1 NaN or infinite'),
        (dict(b=torch.ones(1, 3) / 3), r'b must have shape \(1, 2\)'),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_transport_problem_that_is_none_is_named(change, message, dtype):
    given = dict(cost=torch.ones(1, 2, 2), a=torch.full((1, 2), 0.5), b=torch.full((1, 2), 0.5), reg=0.1)
    given = {**given, **change}
    for name in ('cost', 'a', 'b'):
        if given[name].is_floating_point():
            given[name] = given[name].to(dtype)
    with pytest.raises((ValueError, TypeError), match=message):
        sinkhorn(**given)


def test_a_whole_number_may_be_written_as_a_float():
    cost, a, b = transport_problem(seed=0)
    expected = sinkhorn(cost, a, b, 0.05, num_iter=100)
    for found in (sinkhorn(cost, a, b, 0.05, num_iter=1e2), sinkhorn(cost, a, b, 0.05, num_iter=100, check_every=10.0)):
        assert torch.equal(found.plan, expected.plan)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_costs_far_beyond_reg_lose_no_mass_or_are_named(dtype):
    cost = torch.tensor([[[1.0, 2], [2, 1], [3, 3]]], dtype=dtype)
    a, b = torch.full((1, 3), 1 / 3, dtype=dtype), torch.tensor([[0.5, 0.5]], dtype=dtype)
    plan = sinkhorn(1e9 * cost, a, b, 0.05, num_iter=50).plan
    torch.testing.assert_close(plan.sum(1), b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r'reg is too small for the cost, whose largest entry is 6e\+31 times reg'):
        sinkhorn(1e30 * cost, a, b, 0.05)


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.uint8])
def test_integer_costs_are_assigned_as_floats(dtype):
    cost = torch.randint(0, 50, (3, 6, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [linear_sum_assignment(problem) for problem in cost.numpy()]
    found = assignment(cost)
    for columns, (rows, chosen) in zip(found, expected):
        assert columns[rows].tolist() == chosen.tolist()
        assert (columns >= 0).sum() == 4


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_an_assignment_of_non_finite_costs_is_refused_but_not_of_padding(value, dtype):
    cost = torch.rand(2, 4, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    cost[1, 2, 0] = value
    with pytest.raises(ValueError, match='cost holds NaN or infinite entries'):
        assignment(cost)
    mask = torch.tensor([[True] * 3, [False, True, True]])
    assert assignment(cost, mask)[1].max() == 2


@pytest.mark.parametrize('size', [1e4, 1e30])
@pytest.mark.parametrize('classes', [2, 5, 8, 21])
def test_large_logits_lose_nothing_beside_each_other(size, classes):
    scores = torch.full((3, classes), size)
    scores[1] = -size
    scores[2] = torch.linspace(-1, 1, classes) * size
    pairs = expand(torch.tensor([[[1.0, 0.0]] * 3]))
    labels = torch.zeros(3, dtype=torch.long)
    labels[2] = classes - 1

    def losses(scores):
        return classification_losses(CrossEntropyLoss(), scores, labels, classes - 1, pairs, lambda: None)

    found, gradient = with_gradients(losses, scores, torch.ones(3))
    expected, wanted = with_gradients(
        lambda x: torch.nn.functional.cross_entropy(x, labels, reduction='none'), scores.double(), torch.ones(3)
    )
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(gradient, wanted.float())
    loss = DistributionFocalLoss(reduction='none')
    found, gradient = with_gradients(lambda x: loss(x, labels.float()), scores, torch.ones(3))
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(gradient, wanted.float())


@pytest.mark.parametrize('weight', [1e9, 1e20, 1e30])
@pytest.mark.slow
def test_a_penalty_beyond_rounding_is_a_constraint(both, weight):
    cost, a, b = transport_problem(seed=2)
    expected = sinkhorn(cost.double(), a.double(), b.double(), 0.1, None, None, tol=1e-9).plan
    for sides in ((weight, None), (None, weight), (weight, weight)):
        for result in both(sinkhorn, cost, a, b, 0.1, *sides, tol=1e-5):
            torch.testing.assert_close(result.plan.double(), expected, rtol=1e-3, atol=1e-6)
