"""On a GPU: the values of the CPU, and no wait for the device in a training step. Skipped where there is none."""

import copy
import warnings

import pytest
import torch
from mmengine.structures import InstanceData
from test_detection_loss import ASSIGNERS, random_case
from test_plan_heads import CONFIGS, DENSE, dense_outputs, detr_outputs, ground_truths, head_config, soft

from uotod_mmdet.losses import (
    DistributionFocalLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    PositionSupervisedLoss,
    QualityFocalLoss,
    VarifocalLoss,
)
from uotod_mmdet.ops import deferred, native
from uotod_mmdet.ot import sinkhorn
from uotod_mmdet.registry import MODELS, TASK_UTILS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture(autouse=True)
def no_flag_from_before():
    deferred._sent.clear()
    yield
    torch.cuda.synchronize()
    deferred._sent.clear()


def hungarian(head: str) -> torch.nn.Module:
    train_cfg = head_config(head).train_cfg
    train_cfg.assigner.type = 'uotod_mmdet.HungarianAssigner'
    return MODELS.build({**head_config(head, train_cfg=train_cfg), 'type': f'uotod_mmdet.{head}'})


def losses_and_gradients(model: torch.nn.Module, device: str) -> tuple[dict, list[torch.Tensor]]:
    """Losses on the same random outputs and ground truths, and the gradients by the outputs."""
    head = type(model).__name__
    gts, ignored, metas = ground_truths(0, with_ignored=head in DENSE)
    gts, ignored = [gt.to(device) for gt in gts], [each.to(device) for each in ignored]
    model = model.to(device)
    if head in DENSE:
        leaves = [[level.detach().to(device).requires_grad_() for level in maps] for maps in dense_outputs(model, 0)]
        losses = model.loss_by_feat(*leaves, gts, metas, ignored)
        leaves = [level for maps in leaves for level in maps]
    else:
        leaves = [leaf.detach().to(device).requires_grad_() for leaf in detr_outputs(model.cls_out_channels, 0)]
        args, extra = [leaves[0], leaves[1].sigmoid()], {}
        if head in ('DeformableDETRHead', 'DINOHead'):
            args += [args[0][0], args[1][0]]
        if head == 'DINOHead':
            extra = dict(dn_meta=dict(num_denoising_queries=12, num_denoising_groups=1))
        losses = model.loss_by_feat(*args, gts, metas, **extra)
    terms = [term for name, value in losses.items() if 'loss' in name for term in torch.atleast_1d(value)]
    return losses, torch.autograd.grad(sum(terms), leaves)


@pytest.mark.parametrize('plan', ['soft', 'one-hot'])
@pytest.mark.parametrize('head', CONFIGS)
def test_losses_and_gradients_of_heads_are_those_of_the_cpu(head, plan):
    if plan == 'one-hot' and head in DENSE:
        model = MODELS.build({**head_config(head), 'type': f'uotod_mmdet.{head}'})  # mmdet's own assigner
    else:
        model = soft(head) if plan == 'soft' else hungarian(head)
    wanted, wanted_gradients = losses_and_gradients(model, 'cpu')
    found, gradients = losses_and_gradients(model, 'cuda')
    for name in (name for name in wanted if 'loss' in name):
        torch.testing.assert_close(found[name].cpu(), wanted[name], rtol=2e-3, atol=1e-4, msg=name)
    for gradient, expected in zip(gradients, wanted_gradients):
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-2, atol=5e-3 * scale)


@pytest.mark.parametrize('head', ['DETRHead', 'ConditionalDETRHead', 'DABDETRHead', 'DeformableDETRHead'])
def test_no_step_with_sinkhorn_waits_for_the_device(head):
    model = soft(head).cuda()
    losses_and_gradients(model, 'cuda')  # first use of a kernel may wait
    gts, _, metas = ground_truths(0, with_ignored=False)
    gts = [gt.to('cuda') for gt in gts]
    leaves = [leaf.detach().cuda().requires_grad_() for leaf in detr_outputs(model.cls_out_channels, 0)]
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        args = [leaves[0], leaves[1].sigmoid()]
        if head == 'DeformableDETRHead':
            args += [args[0][0], args[1][0]]
        losses = model.loss_by_feat(*args, gts, metas)
        torch.autograd.grad(sum(value for name, value in losses.items() if 'loss' in name), leaves)
        torch.cuda.set_sync_debug_mode('default')
    places = [f'{wait.filename}:{wait.lineno}' for wait in waits if 'called a synchronizing' in str(wait.message)]
    assert not places, '\n'.join(places)


def test_nan_is_named_in_the_next_step_at_the_latest():
    model = soft('DETRHead').cuda()
    gts, _, metas = ground_truths(0, with_ignored=False)
    gts = [gt.to('cuda') for gt in gts]
    scores, boxes = (leaf.detach().cuda() for leaf in detr_outputs(model.cls_out_channels, 0))
    scores[0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        model.loss_by_feat(scores, boxes.sigmoid(), gts, metas)
        torch.cuda.synchronize()
        model.loss_by_feat(scores.nan_to_num(), boxes.sigmoid(), gts, metas)


def transport_problem(batch: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs whose first problem has rows that avoid all columns but the last, and empty rows and columns."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, rows, columns, generator=generator)
    cost[0, : rows // 2] += 2.0
    cost[:, :, -1] = 0.5
    a = torch.full((batch, rows), 1 / rows, dtype=torch.float64)
    b = torch.full((batch, columns), 1 / rows, dtype=torch.float64)
    a[-1, rows // 2 :] = 0
    b[-1, : columns // 2] = 0
    b[:, -1] = a.sum(1) - b[:, :-1].sum(1)
    return cost, a, b


@pytest.mark.parametrize('weights', [(None, None), (1.0, 0.1), (1e3, 1e-2), (None, 0.1), (0.0, None)])
@pytest.mark.parametrize('reg', [0.3, 0.02, 0.005])
@pytest.mark.parametrize('shape', [(4, 60, 8), (48, 300, 31), (3, 5000, 21), (1, 1500, 300), (2, 3, 1)])
def test_plans_are_those_of_the_cpu_in_float64(shape, weights, reg):
    cost, a, b = transport_problem(*shape)
    exact = sinkhorn(cost.double(), a, b, reg, *weights, num_iter=1000, tol=1e-8)
    problem = cost.cuda(), a.float().cuda(), b.float().cuda()
    result = sinkhorn(*problem, reg, *weights, num_iter=500, tol=1e-4)
    assert exact.converged.all() and result.converged.all()
    assert (result.plan.cpu() - exact.plan).abs().sum((1, 2)).max() < 2e-3
    again = sinkhorn(*problem, reg, *weights, num_iter=500, tol=1e-4)
    assert all(torch.equal(one, two) for one, two in zip(result, again))
    assert native.has_triton, 'Triton could not compile the kernel (a warning says why), so torch found these plans'


@pytest.mark.parametrize('assigner', ASSIGNERS, ids=lambda cfg: cfg['type'])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_detection_loss_is_that_of_the_cpu(assigner, reduction):
    loss = MODELS.build(
        dict(
            type='uotod_mmdet.DetectionLoss',
            assigner={**copy.deepcopy(assigner), **(dict(tol=1e-6) if 'Sinkhorn' in assigner['type'] else {})},
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
            loss_bbox=[dict(type='L1Loss', loss_weight=5.0), dict(type='GIoULoss', loss_weight=2.0)],
            reduction=reduction,
        )
    )
    values = {}
    for device in ('cpu', 'cuda'):
        case = random_case(0, 'last')
        input = {name: value.to(device).requires_grad_() for name, value in case['input'].items()}
        target = {name: value.to(device) for name, value in case['target'].items()}
        value = loss.to(device)(input, target)
        gradients = torch.autograd.grad(value.sum(), list(input.values()))
        values[device] = [value.detach().cpu(), *(gradient.cpu() for gradient in gradients)]
    for found, wanted in zip(values['cuda'], values['cpu']):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


COSTS = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


@pytest.mark.parametrize(
    'assigner', ['HungarianAssigner', 'BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner', 'ClosestTargetAssigner']
)
def test_assign_is_that_of_the_cpu(assigner):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 200
    predictions = InstanceData(
        scores=torch.randn(50, 5, generator=generator),
        bboxes=torch.cat([corner, corner + 20 + 80 * torch.rand(50, 2, generator=generator)], 1),
    )
    truths = InstanceData(bboxes=predictions.bboxes[::9] + 5, labels=torch.arange(6) % 5)
    matcher = TASK_UTILS.build(dict(type=f'uotod_mmdet.{assigner}', match_costs=COSTS))
    meta = dict(img_shape=(300, 300))
    wanted = matcher.assign(predictions, truths, img_meta=meta)
    found = matcher.assign(predictions.to('cuda'), truths.to('cuda'), img_meta=meta)
    assert found.gt_inds.is_cuda
    assert torch.equal(found.gt_inds.cpu(), wanted.gt_inds) and torch.equal(found.labels.cpu(), wanted.labels)
    assert (wanted.gt_inds > 0).any()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'loss',
    [
        QualityFocalLoss,
        VarifocalLoss,
        DistributionFocalLoss,
        MatchabilityAwareLoss,
        IoUAwareBCELoss,
        PositionSupervisedLoss,
    ],
)
def test_losses_are_those_of_the_cpu(loss, dtype):
    generator = torch.Generator().manual_seed(0)
    rows, columns = 40, 9
    scores = torch.randn(rows, columns, generator=generator).to(dtype)
    if loss is DistributionFocalLoss:
        target = torch.rand(rows, generator=generator) * (columns - 1.01)
    elif loss is VarifocalLoss:
        target = torch.rand(rows, columns, generator=generator).clamp(min=0.7) - 0.7
    else:
        target = (torch.randint(0, columns + 1, (rows,), generator=generator), torch.rand(rows, generator=generator))
    weight = torch.rand(rows, generator=generator)
    weight = weight[:, None].expand(rows, columns).contiguous() if loss is VarifocalLoss else weight
    values = []
    for device in ('cpu', 'cuda'):
        leaf = scores.to(device).requires_grad_()
        moved = tuple(each.to(device) for each in target) if isinstance(target, tuple) else target.to(device)
        value = loss()(leaf, moved, weight.to(device), avg_factor=7.0)
        values.append((value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu()))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(values[1][0], values[0][0], rtol=30 * eps, atol=1e-6)
    torch.testing.assert_close(
        values[1][1], values[0][1], rtol=30 * eps, atol=30 * eps * values[0][1].abs().max().item()
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('head', ['GFLHead', 'DETRHead'])
def test_autocast_is_close_to_float32(head, dtype):
    model = soft(head)
    expected, _ = losses_and_gradients(model, 'cuda')
    with torch.autocast('cuda', dtype):
        found, _ = losses_and_gradients(model, 'cuda')
    for name in (name for name in expected if 'loss' in name):
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=1e-3, msg=name)
