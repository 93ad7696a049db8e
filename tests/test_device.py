"""Training on a plan without the host reading values from the device."""

from collections import deque

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from packaging.version import Version
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from uotod_mmdet.ops import deferred, native
from uotod_mmdet.ot import sinkhorn
from uotod_mmdet.plan import expand

METAS = [dict(img_shape=(80, 100)), dict(img_shape=(70, 90))]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The code takes the ways that it takes on a GPU; flags are sent off and not waited for."""
    monkeypatch.setattr(deferred, 'host_may_wait', lambda tensor: False)
    monkeypatch.setattr(native, 'library', None)
    monkeypatch.setattr(deferred, '_sent', deque())

    class Event:
        def query(self):
            return self.arrived

        arrived = False

    monkeypatch.setattr(deferred, '_send', lambda flag: (flag, Event()))
    return Event


def detr_head(assigner, head, config):
    model = get_config(f'mmdet::{config}').model
    init_default_scope('mmdet')
    model.train_cfg.assigner.type = f'uotod_mmdet.{assigner}'
    model.bbox_head.update(type=f'uotod_mmdet.{head}', train_cfg=model.train_cfg)
    return MODELS.build(model.bbox_head)


def loss_and_gradients(head, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 2, 12, classes, generator=generator).requires_grad_()
    boxes = torch.randn(2, 2, 12, 4, generator=generator).sigmoid().requires_grad_()
    gts = [
        InstanceData(
            bboxes=torch.tensor([[10.0, 10, 50, 60], [30.0, 20, 80, 70]])[:count], labels=torch.arange(count) + 3
        )
        for count in (2, 1)
    ]
    losses = head.loss_by_feat(scores, boxes, gts, METAS)
    total = sum(value for name, value in losses.items() if 'loss' in name)
    return losses, torch.autograd.grad(total, [scores, boxes])


HEADS = {
    'DETRHead': ('detr/detr_r50_8xb2-150e_coco.py', 81),
    'ConditionalDETRHead': ('conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', 80),
}


@pytest.mark.slow
@pytest.mark.parametrize('assigner', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
@pytest.mark.parametrize('name', HEADS)
def test_no_value_is_read_in_a_training_step_with_sinkhorn(as_on_a_gpu, name, assigner):
    config, classes = HEADS[name]
    if name == 'ConditionalDETRHead' and Version(torch.__version__) < Version('2.4'):
        pytest.skip("one_hot, which mmdet's FocalLoss calls, reads the values of tensors on a CPU before torch 2.4")
    head = detr_head(assigner, name, config)
    # Fake tensors have no values: to read one, or to make a tensor whose shape depends on one, raises.
    with FakeTensorMode(allow_non_fake_inputs=True):
        scores = torch.randn(2, 2, 12, classes).requires_grad_()
        boxes = torch.rand(2, 2, 12, 4).requires_grad_()
        gts = [InstanceData(bboxes=torch.rand(m, 4), labels=torch.zeros(m, dtype=torch.long)) for m in (2, 1)]
        losses = head.loss_by_feat(scores, boxes, gts, METAS)
        total = sum(value for name, value in losses.items() if 'loss' in name)
        gradients = torch.autograd.grad(total, [scores, boxes])
        assert [gradient.shape for gradient in gradients] == [scores.shape, boxes.shape]
        with pytest.raises(DataDependentOutputException):
            bool(total > 0)


@pytest.mark.parametrize('assigner', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
@pytest.mark.parametrize('name', HEADS)
def test_it_gives_the_losses_of_the_way_that_reads(as_on_a_gpu, name, assigner, monkeypatch):
    config, classes = HEADS[name]
    head = detr_head(assigner, name, config)
    head.assigner.tol = 1e-5
    losses, gradients = loss_and_gradients(head, classes)
    monkeypatch.undo()
    expected, expected_gradients = loss_and_gradients(head, classes)
    for key, value in expected.items():
        if key != 'sinkhorn_iters':
            torch.testing.assert_close(losses[key], value, rtol=1e-3, atol=1e-5, msg=key)
    for found, wanted in zip(gradients, expected_gradients):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize('weights', [(None, None), (1.0, 0.1), (1e3, 1e-2), (None, 0.1)])
@pytest.mark.parametrize('reg', [0.3, 0.02, 0.005])
@pytest.mark.parametrize('newton_after', [40, None])
def test_plans_without_a_look_are_those_with(weights, reg, newton_after, request):
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(4, 60, 8, generator=generator)
    cost[1, :50] += 20.0  # outside
    cost[:, :, -1] = 0.5
    a = torch.full((4, 60), 1 / 60, dtype=torch.float64)
    b = torch.full((4, 8), 1 / 60, dtype=torch.float64)
    b[:, -1] = 53 / 60
    exact = sinkhorn(cost.double(), a, b, reg, *weights, num_iter=500, tol=1e-6)
    request.getfixturevalue('as_on_a_gpu')
    options = dict(num_iter=200, tol=1e-4, newton_after=newton_after)
    result = sinkhorn(cost, a.float(), b.float(), reg, *weights, **options)
    assert exact.converged.all()
    assert result.converged.all() or newton_after is None
    distance = (result.plan - exact.plan).abs().sum((1, 2))
    assert distance[result.converged].max() < 2e-3
    assert (distance[~result.converged] > 1e-4).all()  # and says so


def test_all_pairs_weigh_what_the_few_weigh(as_on_a_gpu):
    plan = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    plan[plan < 0.3] = 0
    few, every = expand(plan, 0.4), expand(plan, 0.4, few=False)
    assert len(every.rows) == 2 * 5 * 3
    kept = every.weight > 0
    for name in ('rows', 'gts', 'images', 'weight'):
        assert torch.equal(getattr(every, name)[kept], getattr(few, name))
    assert torch.equal(every.background, few.background)


def test_an_error_comes_when_its_flag_has_arrived(as_on_a_gpu):
    def complain():
        raise ValueError('of the first step')

    deferred.act_if(torch.tensor(True), complain)
    deferred.act_if(torch.tensor(False), complain)
    as_on_a_gpu.arrived = True
    with pytest.raises(ValueError, match='of the first step'):
        deferred.act_if(torch.tensor(False), complain)
    deferred.act_if(torch.tensor(False), complain)
