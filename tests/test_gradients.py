"""Gradients by everything that a user may learn, and not by the predictions alone, are those of mmdet's losses."""

import sys

import mmdet.models.losses as stock
import pytest
import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss

import uotod_mmdet.losses as ours
from uotod_mmdet.plan import box_losses, classification_losses, expand


def gradients(loss, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', ['QualityFocalLoss', 'VarifocalLoss', 'DistributionFocalLoss'])
def test_weights_and_targets_may_be_learnt(name, dtype):
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(12, 5, generator=generator, dtype=dtype)
    rows = torch.rand(12, generator=generator, dtype=dtype) + 0.1
    label = torch.randint(0, 6, (12,), generator=generator)
    dense = torch.rand(12, 5, generator=generator, dtype=dtype) * (torch.rand(12, 5, generator=generator) < 0.3)
    cases = {
        'QualityFocalLoss': (rows, rows / 2, lambda target: (label, target)),
        'VarifocalLoss': (rows[:, None] * torch.ones_like(pred), dense + 0.01, lambda target: target),
        'DistributionFocalLoss': (rows, rows * 3, lambda target: target),
    }
    weight, target, form = cases[name]

    def of_module(module):
        loss = getattr(module, name)()
        return gradients(lambda x, w, y: loss(x, form(y), w, avg_factor=3.0), (pred, weight, target))

    found, expected = of_module(ours), of_module(stock)
    for value, wanted in zip(found, expected):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize('name', ['QualityFocalLoss', 'activated QualityFocalLoss', 'VarifocalLoss'])
@pytest.mark.parametrize('exponent', [2.0, 1.5, 3.0])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('path', ['blocks', 'plain'])
def test_learnt_dense_targets_have_mmdets_gradients_where_they_are_zero(path, reduction, exponent, name, monkeypatch):
    if path == 'plain':
        for module in ('quality_focal_loss', 'varifocal_loss'):
            monkeypatch.setattr(sys.modules[f'uotod_mmdet.losses.{module}'], 'pays_in_blocks', lambda x: False)
    generator = torch.Generator().manual_seed(3)
    pred = torch.rand(12, 5, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    target = torch.rand(12, 5, generator=generator) * (torch.rand(12, 5, generator=generator) < 0.3)
    options = {'gamma' if name == 'VarifocalLoss' else 'beta': exponent}
    if name.startswith('activated'):
        options['activated'] = True

    def of_module(module):
        loss = getattr(module, name.split()[-1])(**options, reduction=reduction)
        return gradients(lambda x, y: loss(x, y).sum(), (pred, target.double()))

    found, expected = of_module(ours), of_module(stock)
    assert ((expected[1][target == 0] != 0) == (name == 'VarifocalLoss')).all()
    assert (expected[1][target != 0] != 0).all()
    for value, wanted in zip(found, expected):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(
    'loss',
    [CrossEntropyLoss(), FocalLoss(), stock.QualityFocalLoss(), ours.QualityFocalLoss(), ours.VarifocalLoss()],
    ids=lambda loss: type(loss).__module__.split('.')[0] + type(loss).__name__,
)
def test_a_plan_may_be_learnt_through_classification_losses(loss, dtype):
    generator = torch.Generator().manual_seed(1)
    plan = torch.rand(1, 6, 3, generator=generator, dtype=torch.float64).softmax(2)
    scores, quality = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.rand(12, generator=generator)
    labels = torch.tensor([0, 2] * 6)
    background = 4 if getattr(loss, 'use_sigmoid', False) else 3

    def total(plan):
        pairs = expand(plan, min_weight=0.0)
        x, q = scores.to(plan), quality.to(plan)
        return classification_losses(loss, x, labels, background, pairs, lambda: q).sum()

    (found,) = gradients(total, [plan.to(dtype)])
    step, quotients = 1e-6, torch.empty_like(plan)
    for index in range(plan.numel()):
        ends = [plan.flatten().clone() for _ in range(2)]
        ends[0][index] += step
        ends[1][index] -= step
        high, low = (total(end.view_as(plan)) for end in ends)
        quotients.view(-1)[index] = (high - low) / (2 * step)
    torch.testing.assert_close(found.double(), quotients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('loss', [L1Loss(), GIoULoss()], ids=['L1', 'GIoU'])
@pytest.mark.parametrize('size', [1e-6, 5e-4, 1.0, 1e4])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_box_losses_of_pairs_have_mmdets_gradients_at_every_size(loss, size, dtype):
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(8, 2, generator=generator, dtype=dtype)
    boxes = torch.cat([corner, corner + 0.5 + torch.rand(8, 2, generator=generator, dtype=dtype)], 1) * size
    truths = boxes[:4] * 0.9 + 0.05 * size
    plan = torch.rand(1, 8, 5, generator=generator, dtype=dtype).softmax(2)
    pairs = expand(plan, min_weight=0.0)

    def plain(boxes):
        values = loss(boxes[pairs.rows], truths[pairs.gts], reduction_override='none')
        return ((values if values.dim() == 1 else values.sum(1)) * pairs.weight).sum()

    (found,) = gradients(lambda boxes: box_losses(loss, boxes, truths, pairs).sum(), [boxes])
    (expected,) = gradients(plain, [boxes])
    scale = expected.abs().max().item()
    atol = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-3, atol=atol)


@pytest.mark.parametrize('exponent', [1e-30, 0.5, 0.99])
@pytest.mark.parametrize('shape', [(3, 4), (24, 1)])
@pytest.mark.parametrize('learnt_target', [False, True])
def test_exponents_below_one_have_gradients_where_score_and_target_agree(exponent, shape, learnt_target):
    """The slope of distance^exponent is infinite at 0; its gradient there is 0, and everywhere it is finite."""
    for logit, quality in ((0.0, 0.5), (-200.0, 0.0), (200.0, 1.0)):
        pred = torch.full(shape, logit, requires_grad=True)
        target = torch.full(shape, quality, requires_grad=learnt_target)
        for loss in (
            ours.quality_focal_loss(pred, target, beta=exponent),
            ours.varifocal_loss(pred, target, gamma=exponent, iou_weighted=False),
        ):
            assert loss.isfinite()
            assert torch.autograd.grad(loss, pred)[0].isfinite().all()
    close = torch.full(shape, 1e-3, dtype=torch.float64, requires_grad=True)
    target = torch.full(shape, 0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ours.quality_focal_loss(x, target, beta=exponent), close)
