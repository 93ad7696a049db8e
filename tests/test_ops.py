"""Ops as torch.library asks for them, and traced: torch.compile, torch.export and torch.func give what eager gives."""

from collections.abc import Callable

import pytest
import torch
from mmengine.structures import InstanceData
from test_heads import plan_config
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from uotod_mmdet import ot
from uotod_mmdet.ops import native
from uotod_mmdet.ops.box_losses import box_losses_gradient_op, box_losses_op
from uotod_mmdet.ops.focal_rows import focal_rows_op
from uotod_mmdet.ops.pair_costs import KINDS, pair_costs_op
from uotod_mmdet.ops.registration import HAS_CUSTOM_OPS
from uotod_mmdet.ops.sinkhorn import sinkhorn_op
from uotod_mmdet.ops.softmax_rows import softmax_rows_gradient_op, softmax_rows_op
from uotod_mmdet.registry import MODELS

pytestmark = pytest.mark.skipif(not HAS_CUSTOM_OPS, reason='torch.library has custom ops since torch 2.4')

ROWS = torch.tensor([0, 0, 2, 5, 5])
PLACES = torch.tensor([1, 0, 3, 2, 2])
ENTRIES = torch.tensor([1, 11, 13, 26])
NONE = torch.zeros(0, dtype=torch.long)


def sinkhorn_inputs(dtype, rho_b=torch.inf, newton_after=40, relative=False):
    cost = torch.rand(2, 7, 4, dtype=dtype)
    a, b = torch.full((2, 7), 1 / 7, dtype=dtype), torch.full((2, 4), 1 / 4, dtype=dtype)
    weights = torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), torch.inf, dtype=torch.float64)
    weights += (torch.full((2,), rho_b, dtype=torch.float64), torch.ones(2, dtype=dtype))
    return cost, a, b, *weights, relative, 100, 10, newton_after, 1e-4, 10.0


def boxes(*shape, dtype=torch.float32):
    corner = torch.rand(*shape, 2, dtype=dtype) * 50
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, dtype=dtype) * 40], -1)


def pair_cost_inputs(dtype, kinds=None, pred_mask=True):
    kinds = list(range(len(KINDS)) if kinds is None else kinds)
    labels, gt_mask = torch.randint(5, (2, 3)), torch.tensor([[True, True, True], [True, False, False]])
    compared = boxes(2, 7, dtype=dtype), boxes(2, 3, dtype=dtype), torch.randn(2, 7, 5, dtype=dtype), labels
    compared += torch.full((2, 4), 100, dtype=dtype), torch.rand(2, 7, 3, dtype=dtype)
    if not kinds:
        compared = (None,) * 6
    numbers = [1.5, 1e-3, 0.25, 2.0, 1.0] * len(kinds)
    mask = torch.rand(2, 7) < 0.8 if pred_mask else None
    return kinds, numbers, *compared, gt_mask, mask, torch.zeros(2, 7, dtype=dtype), 0.5


def focal_inputs(dtype, gradient, index=ENTRIES):
    slopes = torch.rand(len(index), dtype=dtype) if gradient else None
    logits = torch.randn(6, 5, dtype=dtype, requires_grad=gradient)
    return logits, 2.0, torch.rand(6, dtype=dtype), index, torch.rand(len(index), dtype=dtype), slopes


def softmax_inputs(dtype, requires_grad=True, rows=ROWS, labels=PLACES):
    scores = torch.randn(6, 5, dtype=dtype, requires_grad=requires_grad)
    return scores, 4, torch.rand(6, dtype=dtype), rows, labels, torch.rand(len(rows), dtype=dtype)


def box_inputs(dtype, eps, sizes=True, requires_grad=True, rows=ROWS, gts=PLACES):
    preds = (boxes(6, dtype=dtype) / (100 if sizes else 1)).requires_grad_(requires_grad)
    size = torch.full((2, 4), 100, dtype=dtype) if sizes else None
    return preds, boxes(4, dtype=dtype), size, rows, gts, rows // 3, torch.rand(len(rows), dtype=dtype), 2.0, eps


def wide_box_inputs(dtype):
    given = box_inputs(dtype, -1.0)
    return *given[:6], given[6].double(), *given[7:]


def softmax_gradient_inputs(dtype, rows=ROWS, labels=PLACES):
    given = softmax_inputs(dtype, False, rows, labels)
    return *given, softmax_rows_op(*given)[1], torch.rand(6, dtype=dtype)


def box_gradient_inputs(dtype, *args, **kwargs):
    given = box_inputs(dtype, *args, requires_grad=False, **kwargs)
    return *given, torch.rand(len(given[6]), dtype=dtype)


CASES = {
    'sinkhorn, balanced': (sinkhorn_op, sinkhorn_inputs),
    'sinkhorn, unbalanced, relative': (sinkhorn_op, lambda dtype: sinkhorn_inputs(dtype, 2.0, -1, True)),
    'pair costs, all kinds': (pair_costs_op, pair_cost_inputs),
    'pair costs, no mask': (pair_costs_op, lambda dtype: pair_cost_inputs(dtype, (2, 4), pred_mask=False)),
    'pair costs, no terms': (pair_costs_op, lambda dtype: pair_cost_inputs(dtype, ())),
    'focal rows, gradient': (focal_rows_op, lambda dtype: focal_inputs(dtype, True)),
    'focal rows, no gradient': (focal_rows_op, lambda dtype: focal_inputs(dtype, False)),
    'focal rows, no entries': (focal_rows_op, lambda dtype: focal_inputs(dtype, True, NONE)),
    'softmax rows, gradient': (softmax_rows_op, softmax_inputs),
    'softmax rows, no gradient': (softmax_rows_op, lambda dtype: softmax_inputs(dtype, False)),
    'softmax rows, no pairs': (softmax_rows_op, lambda dtype: softmax_inputs(dtype, True, NONE, NONE)),
    'gradient of softmax rows': (softmax_rows_gradient_op, softmax_gradient_inputs),
    'gradient of softmax rows, no pairs': (softmax_rows_gradient_op, lambda d: softmax_gradient_inputs(d, NONE, NONE)),
    'L1': (box_losses_op, lambda dtype: box_inputs(dtype, -1.0)),
    'L1 in pixels': (box_losses_op, lambda dtype: box_inputs(dtype, -1.0, sizes=False)),
    'GIoU': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6)),
    'GIoU in pixels, no gradient': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6, False, False)),
    'GIoU, no pairs': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6, True, True, NONE, NONE)),
    'L1, weights of a wider dtype': (box_losses_op, wide_box_inputs),
    'gradient of L1': (box_losses_gradient_op, lambda dtype: box_gradient_inputs(dtype, -1.0)),
    'gradient of GIoU in pixels': (box_losses_gradient_op, lambda dtype: box_gradient_inputs(dtype, 1e-6, sizes=False)),
}


@pytest.mark.parametrize('way', ['compiled part', 'without compiled part', 'float64'])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.slow
def test_ops_are_as_torch_library_asks(case, way, monkeypatch):
    if way == 'compiled part' and native.library is None:
        pytest.skip('no compiled part')
    if way == 'without compiled part':
        monkeypatch.setattr(native, 'library', None)
    op, inputs = CASES[case]
    found = torch.library.opcheck(op.registered, inputs(torch.float64 if way == 'float64' else torch.float32))
    assert found and set(found.values()) == {'SUCCESS'}


def outputs_and_gradients(call: Callable, inputs: tuple) -> list[Tensor]:
    """Outputs, and gradients of the sum of the first one where it has any."""
    given = [v.clone().requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v for v in inputs]
    leaves = [v for v in given if isinstance(v, Tensor) and v.requires_grad]
    found = call(*given)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    return outputs + list(torch.autograd.grad(outputs[0].sum(), leaves) if outputs[0].requires_grad else ())


@pytest.mark.parametrize('case', CASES)
def test_a_plain_call_gives_what_the_registered_op_gives(case):
    op, make_inputs = CASES[case]
    inputs = make_inputs(torch.float32)
    plain, registered = outputs_and_gradients(op, inputs), outputs_and_gradients(op.registered, inputs)
    assert len(plain) == len(registered) and all(map(torch.equal, plain, registered))


@pytest.mark.parametrize('case', CASES)
def test_a_graph_of_plain_tensors_holds_the_op_and_not_its_values(case):
    op, make_inputs = CASES[case]
    graph = make_fx(op, tracing_mode='real')(*make_inputs(torch.float32)).graph
    assert op.registered._opoverload in [node.target for node in graph.nodes]


def assert_same_compiled(function: Callable, *inputs: Tensor) -> None:
    """Values by name, and gradients of the sum of those called a loss, of one graph equal those of eager."""
    torch._dynamo.reset()
    found = []
    for call in (function, torch.compile(function, fullgraph=True, backend='aot_eager')):
        leaves = [values.clone().requires_grad_(values.requires_grad) for values in inputs]
        values = call(*leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        total = sum(value.sum() for name, value in values.items() if 'loss' in name)
        found.append((values, torch.autograd.grad(total, wanted) if wanted else ()))
    torch.testing.assert_close(found[1], found[0])
    assert all(grad.any() for grad in found[0][1])


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(2, 7, 4, dtype=dtype, generator=generator)
    return cost, torch.full((2, 7), 1 / 7, dtype=dtype), torch.full((2, 4), 1 / 4, dtype=dtype)


@pytest.mark.parametrize('reg_b', [None, 1.0])
@pytest.mark.slow
def test_sinkhorn_compiles_to_one_graph(reg_b):
    cost, a, b = problem()
    assert_same_compiled(lambda cost: ot.sinkhorn(cost, a, b, 0.1, reg_b=reg_b)._asdict(), cost)


@pytest.mark.slow
def test_sinkhorn_with_gradient_compiles_to_one_graph():
    cost, a, b = problem()
    options = dict(num_iter=5, tol=0, newton_after=None)

    def squares(cost):
        return dict(loss=ot.sinkhorn(cost, a, b, 0.1, **options).plan.square())

    assert_same_compiled(squares, cost.requires_grad_())


@pytest.mark.parametrize('newton_after', [2, None])
@pytest.mark.slow
def test_gradients_pass_through_sinkhorn_and_newton(newton_after):
    cost, a, b = problem(torch.float64)

    def plan(cost):
        return ot.sinkhorn(cost, a, b, 0.2, tol=1e-12, newton_after=newton_after).plan

    assert torch.autograd.gradcheck(plan, cost.requires_grad_())


def test_vmap_of_sinkhorn_gives_the_plan_of_each_problem():
    cost, a, b = problem(torch.float64)

    def plan(cost):
        return ot.sinkhorn(cost, a, b, 0.1, tol=1e-9).plan

    costs = torch.stack([cost, cost.flip(1), 2 * cost])
    torch.testing.assert_close(torch.func.vmap(plan)(costs), torch.stack([plan(cost) for cost in costs]))


def loss_inputs() -> dict[str, tuple]:
    """Losses, predictions and targets of 6 rows and 5 columns."""
    generator = torch.Generator().manual_seed(1)
    pred, score = torch.randn(6, 5, generator=generator), torch.rand(6, generator=generator)
    label = torch.tensor([0, 1, 5, 3, 5, 2])
    soft = torch.zeros(6, 5).scatter_(1, label.clamp(max=4)[:, None], score[:, None])
    return {
        'QualityFocalLoss': (pred, (label, score)),
        'QualityFocalLoss, soft target': (pred, soft),
        'DistributionFocalLoss': (pred, 4 * score),
        'VarifocalLoss': (pred, soft),
        'MatchabilityAwareLoss': (pred, (label, score)),
        'IoUAwareBCELoss': (pred, (label, score)),
        'PositionSupervisedLoss': (pred, (label, score)),
        'PositionSupervisedLoss, soft target': (pred, soft),
    }


def build_loss(case: str) -> torch.nn.Module:
    return MODELS.build(dict(type=f'uotod_mmdet.{case.partition(",")[0]}', loss_weight=1.5))


@pytest.mark.parametrize('case', loss_inputs())
@pytest.mark.slow
def test_losses_compile_to_one_graph(case):
    loss, (pred, target) = build_loss(case), loss_inputs()[case]
    weight = torch.linspace(0.5, 2, 6)
    weight = weight[:, None] if case == 'VarifocalLoss' else weight
    assert_same_compiled(lambda pred: dict(loss=loss(pred, target)), pred.requires_grad_())
    assert_same_compiled(lambda pred: dict(loss=loss(pred, target, weight, avg_factor=3.0)), pred.requires_grad_())


def detr_inputs() -> tuple:
    scores, predicted = torch.randn(2, 2, 30, 5), torch.randn(2, 2, 30, 4).sigmoid()
    truths = [InstanceData(labels=torch.arange(count) % 4, bboxes=boxes(count)) for count in (3, 0)]
    return scores.requires_grad_(), predicted.requires_grad_(), truths, [dict(img_shape=(100, 120))] * 2


@pytest.mark.parametrize(
    'loss_cls',
    [
        dict(type='CrossEntropyLoss', bg_cls_weight=0.1, use_sigmoid=False, loss_weight=1.0, class_weight=1.0),
        dict(type='FocalLoss', use_sigmoid=True),
        dict(type='uotod_mmdet.QualityFocalLoss'),
        dict(type='uotod_mmdet.VarifocalLoss'),
        dict(type='uotod_mmdet.MatchabilityAwareLoss'),
        dict(type='uotod_mmdet.IoUAwareBCELoss'),
        dict(type='uotod_mmdet.PositionSupervisedLoss'),
    ],
    ids=lambda config: config['type'],
)
@pytest.mark.slow
def test_the_loss_of_detr_compiles_to_one_graph(loss_cls):
    config = plan_config('DETRHead', 'BalancedSinkhornAssigner')
    config.bbox_head.train_cfg, config.bbox_head.loss_cls = config.train_cfg, loss_cls
    if loss_cls['type'] == 'CrossEntropyLoss':
        config.bbox_head.train_cfg.assigner.match_costs[0] = dict(type='ClassificationCost')
    head = MODELS.build(config.bbox_head)
    scores, predicted, truths, metas = detr_inputs()
    scores = scores.detach()[..., : head.cls_out_channels].requires_grad_()
    assert_same_compiled(lambda *found: head.loss_by_feat(*found, truths, metas), scores, predicted)


def detection_loss(assigner: str = 'BalancedSinkhornAssigner', loss_cls: str = 'CrossEntropyLoss', **options):
    """The loss, predictions and targets, in which what padding holds does not matter."""
    costs = [dict(type='ClassificationCost'), dict(type='IoUCost', iou_mode='giou')]
    loss = MODELS.build(
        dict(
            type='uotod_mmdet.DetectionLoss',
            loss_cls=dict(type=loss_cls),
            loss_bbox=[dict(type='L1Loss'), dict(type='GIoULoss')],
            assigner=dict(type=f'uotod_mmdet.{assigner}', match_costs=costs, **options),
            bg_class_position='last' if loss_cls == 'CrossEntropyLoss' else 'none',
        )
    )
    mask = torch.tensor([[True, True, True], [False, True, False]])
    target = dict(labels=torch.randint(4, (2, 3)), boxes=boxes(2, 3), mask=mask)
    target['boxes'][1, 0] = torch.nan
    return loss, dict(pred_logits=torch.randn(2, 30, 5), pred_boxes=boxes(2, 30)), target


@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('loss_cls', ['CrossEntropyLoss', 'uotod_mmdet.QualityFocalLoss'])
@pytest.mark.slow
def test_detection_loss_compiles_to_one_graph(loss_cls, masked):
    loss, found, target = detection_loss(loss_cls=loss_cls)
    if not masked:
        target = dict(labels=target['labels'], boxes=boxes(2, 3))

    def terms(*values):
        return loss.loss_terms(dict(zip(found, values)), target)

    assert_same_compiled(terms, *(values.requires_grad_() for values in found.values()))


@pytest.mark.slow
def test_detection_loss_is_exported():
    loss, found, target = detection_loss()
    exported = torch.export.export(loss, (found, target), strict=False).module()
    torch.testing.assert_close(exported(found, target), loss(found, target))


def test_vmap_of_detection_loss_and_of_its_gradient_gives_those_of_each():
    loss, found, target = detection_loss(tol=1e-7, num_iter=500)  # converged, whatever the way to stop
    several = {name: torch.stack([values, values.flip(1)]) for name, values in found.items()}
    leaves = {name: values.clone().requires_grad_() for name, values in several.items()}
    of_each = torch.stack([loss({name: values[i] for name, values in leaves.items()}, target) for i in range(2)])
    values = torch.func.vmap(lambda found: loss(found, target))(several)
    torch.testing.assert_close(values, of_each, rtol=1e-5, atol=1e-5)
    gradient = torch.func.vmap(torch.func.grad(lambda found: loss(found, target)))(several)
    expected = torch.autograd.grad(of_each.sum(), list(leaves.values()))
    torch.testing.assert_close(list(gradient.values()), list(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_exact_assignment_says_that_it_is_not_traced_and_torch_compile_goes_around_it():
    loss, found, target = detection_loss('HungarianAssigner')
    with pytest.raises(RuntimeError, match='solved by scipy on the host.* leave the matching out'):
        torch.func.grad(lambda found: loss(found, target))(found)
    with pytest.raises(RuntimeError, match='solved by scipy on the host.* leave the matching out'):
        torch.export.export(loss, (found, target), strict=False)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(loss, backend='eager')(found, target), loss(found, target))


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('case', loss_inputs())
@pytest.mark.slow
def test_losses_are_exported_for_any_number_of_rows(case, strict):
    loss, (pred, target) = build_loss(case), loss_inputs()[case]
    rows = {0: torch.export.Dim('rows', min=2)}
    shapes = dict(pred=rows, target=(rows, rows) if isinstance(target, tuple) else rows)
    exported = torch.export.export(loss, (pred, target), dynamic_shapes=shapes, strict=strict).module()
    fewer = tuple(values[:4] for values in target) if isinstance(target, tuple) else target[:4]
    torch.testing.assert_close(exported(pred, target), loss(pred, target))
    torch.testing.assert_close(exported(pred[:4], fewer), loss(pred[:4], fewer))


@pytest.mark.parametrize('reduction', ['mean', 'none'])
@pytest.mark.parametrize('case', loss_inputs())
def test_vmap_of_losses_and_of_their_gradients_gives_those_of_each(case, reduction):
    loss, (pred, target) = build_loss(case), loss_inputs()[case]

    def several(values):
        return tuple(map(several, values)) if isinstance(values, tuple) else torch.stack([values, values.flip(0)])

    def single(pred, target):
        return loss(pred, target, reduction_override=reduction)

    preds, targets = several(pred), several(target)
    of_each = list(zip(preds, zip(*targets) if isinstance(targets, tuple) else targets))
    torch.testing.assert_close(torch.func.vmap(single)(preds, targets), torch.stack([single(*one) for one in of_each]))
    gradient = torch.func.vmap(torch.func.grad(lambda *one: single(*one).sum()))(preds, targets)
    leaves = preds.clone().requires_grad_()
    total = sum(single(leaf, one[1]).sum() for leaf, one in zip(leaves, of_each))
    torch.testing.assert_close(gradient, torch.autograd.grad(total, leaves)[0])
