"""RTMDet, YOLOX, FCOS and TOOD on the whole plan: real detectors that train, and bad input that is named."""

from typing import Optional

import pytest
import torch
from mmdet.models.losses import FocalLoss
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from test_plan_heads import POINT, SOFT_DENSE, dense_outputs, ground_truths, head_config, soft
from tiny_models import build, images_and_samples, loss_of, tiny_config

HEADS = ('RTMDetHead', 'YOLOXHead', 'FCOSHead', 'TOODHead')
COSTS = [
    dict(type='uotod_mmdet.SoftLabelCost'),
    dict(type='uotod_mmdet.LogIoUCost', weight=3.0),
    dict(type='uotod_mmdet.SoftCenterCost'),
    dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
]
MASS = dict(gt_mass='dynamic_k', topq=13, reg=0.1, normalize_cost=False, tol=0.05)
STRATEGIES = {
    'BalancedSinkhornAssigner': dict(match_costs=COSTS, **MASS),
    'UnbalancedSinkhornAssigner': dict(match_costs=COSTS, reg_pred=None, reg_target=100.0, **MASS),
    'OTAAssigner': {},
}


@pytest.fixture(autouse=True)
def epoch():
    """One after the initial epochs of TOODHead."""
    MessageHub.get_current_instance().update_info('epoch', 4)


def detector_on_plan(head: str, strategy: str) -> torch.nn.Module:
    """A tiny detector with our head."""
    model = tiny_config(head, dict(type=f'uotod_mmdet.{strategy}', **STRATEGIES[strategy]))
    model.bbox_head.type = f'uotod_mmdet.{model.bbox_head.type}'
    return build(model)


def in_training(
    detector: torch.nn.Module, steps: int, lr: float = 3e-3, batch: Optional[dict] = None, name: str = 'loss'
) -> list[float]:
    """The loss of each step, or one of its terms, on two images."""
    batch = images_and_samples((3, 2), 96) if batch is None else batch
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        data = dict(inputs=list(batch['inputs']), data_samples=batch['data_samples'])
        loss, logged = detector.parse_losses(detector(**detector.data_preprocessor(data, True), mode='loss'))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append(logged[name].item())
    return history


@pytest.mark.slow
@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('head', HEADS)
def test_a_head_overfits_two_images_on_a_soft_plan(head, strategy):
    """RTMDet's losses are weighted by IoUs, which are near 0 before training, so that they grow first, as in mmdet."""
    steps = dict(steps=70, lr=8e-3) if head == 'RTMDetHead' else dict(steps=50)
    history = in_training(detector_on_plan(head, strategy), **steps)
    first = max(history) if head == 'RTMDetHead' else history[0]
    assert min(history[-5:]) < 0.5 * first, history[::7]


@pytest.mark.slow
@pytest.mark.parametrize('head', HEADS)
def test_a_head_trains_with_one_image_of_five_hundred_objects(head):
    detector = detector_on_plan(head, 'UnbalancedSinkhornAssigner')
    batch = images_and_samples((1,), 256)
    (sample,) = batch['data_samples']
    corners = torch.rand(500, 2) * 240
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + 4 + 8 * torch.rand(500, 2)], 1), labels=torch.randint(0, 4, (500,))
    )
    loss = loss_of(detector, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize('head', HEADS)
def test_images_without_objects_give_a_finite_loss_and_gradient(head):
    model = soft(head)
    gts, _, metas = ground_truths(0, with_ignored=False)
    outputs = dense_outputs(model, 0)
    losses = model.loss_by_feat(*outputs, [gts[1]] * 3, metas)
    summed = sum(value for name, value in losses.items() if 'loss' in name)
    gradients = torch.autograd.grad(summed, [level for maps in outputs for level in maps], allow_unused=True)
    assert torch.isfinite(summed) and summed > 0
    assert all(torch.isfinite(grad).all() for grad in gradients if grad is not None)
    assert losses['matched_mass'] == 0 and losses['loss_bbox'] == 0


def test_losses_of_a_soft_plan_are_those_of_all_pairs():
    """YOLOX's three losses by their definition, over every pair of the plan, in float64."""
    model = soft('YOLOXHead', min_weight=0.0)
    gts, _, metas = ground_truths(0, with_ignored=False)
    outputs = [[level.detach().double().requires_grad_() for level in maps] for maps in dense_outputs(model, 0)]
    plans, match_batch = [], model.matcher.match_batch
    model.matcher.match_batch = lambda *args: plans.append(match_batch(*args)) or plans[-1]
    losses = model.loss_by_feat(*outputs, gts, metas)
    plan = plans[0].plan
    scores, deltas, objectness = (
        torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], 1) for maps in outputs
    )
    sizes = [level.shape[2:] for level in outputs[0]]
    points = torch.cat(model.prior_generator.grid_priors(sizes, torch.float64, 'cpu', with_stride=True))
    centers, sides = deltas[..., :2] * points[:, 2:] + points[:, :2], deltas[..., 2:].exp() * points[:, 2:]
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 2)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = dict(loss_cls=0, loss_bbox=0, loss_obj=0)
    for image, gt in enumerate(gts):
        for column, (box, label) in enumerate(zip(gt.bboxes.double(), gt.labels)):
            corner, other = torch.maximum(boxes[image, :, :2], box[:2]), torch.minimum(boxes[image, :, 2:], box[2:])
            overlap = (other - corner).clamp(min=0).prod(1)
            union = sides[image].prod(1) + (box[2:] - box[:2]).prod() - overlap
            iou, weight = overlap / union, plan[image, :, column]
            target = torch.zeros_like(scores[image])
            target[:, label] = iou.detach()
            entropy = cross_entropy(scores[image], target, reduction='none').sum(1)
            expected['loss_cls'] += (weight * entropy).sum()
            expected['loss_bbox'] += 5 * (weight * (1 - iou.clamp(min=1e-16) ** 2)).sum()
    matched, logits = plan[..., :-1].sum(2), objectness[..., 0]
    for mass, target in ((matched, 1.0), (plan[..., -1], 0.0)):
        entropy = cross_entropy(logits, torch.full_like(logits, target), reduction='none')
        expected['loss_obj'] += (mass * entropy).sum()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value / matched.sum(), rtol=1e-6, atol=1e-9, msg=name)
    leaves = [level for maps in outputs for level in maps]
    kept = dict(retain_graph=True)
    found = torch.autograd.grad(sum(losses[name] for name in expected), leaves, **kept)
    for grad, other in zip(found, torch.autograd.grad(sum(expected.values()) / matched.sum(), leaves, **kept)):
        torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-9)


def test_the_alignment_target_of_a_soft_plan_lies_below_the_largest_overlap():
    model = soft('TOODHead')
    gts, _, metas = ground_truths(0, with_ignored=False)
    seen = []
    target_of = model.alignment_target
    model.alignment_target = lambda *args: seen.append((*args, target_of(*args))) or seen[-1][-1]
    model.loss_by_feat(*dense_outputs(model, 0), gts, metas)
    matched, overlaps, target = seen[0]
    for gt in matched.pairs.gts.unique():
        its = matched.pairs.gts == gt
        assert its.sum() > 1 and target[its].max() <= overlaps[its].max() and target[its].max() > 0


@pytest.mark.parametrize('head', POINT)
@pytest.mark.parametrize('kind', ['ATSSAssigner', 'MaxIoUAssigner'])
def test_an_assigner_of_anchors_is_refused_by_a_head_of_points(head, kind):
    extra = dict(topk=9) if kind == 'ATSSAssigner' else dict(pos_iou_thr=0.5, neg_iou_thr=0.4)
    train_cfg = {**(head_config(head).train_cfg or {}), 'assigner': dict(type=kind, **extra)}
    with pytest.raises(ValueError, match=f'{kind} reads priors as anchors .*points.*DynamicSoftLabelAssigner'):
        MODELS.build({**head_config(head, train_cfg=train_cfg), 'type': f'uotod_mmdet.{head}'})


def test_an_assigner_of_points_is_refused_by_a_head_of_anchors():
    train_cfg = {**head_config('TOODHead').train_cfg, 'assigner': dict(type='SimOTAAssigner')}
    with pytest.raises(ValueError, match='SimOTAAssigner reads priors as points'):
        MODELS.build({**head_config('TOODHead', train_cfg=train_cfg), 'type': 'uotod_mmdet.TOODHead'})


def test_losses_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match='YOLOXHead.*loss_obj=CrossEntropyLoss'):
        changes = dict(loss_obj=dict(type='CrossEntropyLoss'), train_cfg=dict(assigner=dict(SOFT_DENSE)))
        MODELS.build({**head_config('YOLOXHead', **changes), 'type': 'uotod_mmdet.YOLOXHead'})
    with pytest.raises(ValueError, match='YOLOXHead: a plan cannot weigh loss_cls=GHMC'):
        changes = dict(loss_cls=dict(type='GHMC'), train_cfg=dict(assigner=dict(SOFT_DENSE)))
        MODELS.build({**head_config('YOLOXHead', **changes), 'type': 'uotod_mmdet.YOLOXHead'})
    with pytest.raises(ValueError, match='loss_cls=LabelsOnly does not take the IoU as a target of each class'):
        changes = dict(loss_cls=dict(type=LabelsOnly), train_cfg=dict(assigner=dict(SOFT_DENSE)))
        MODELS.build({**head_config('YOLOXHead', **changes), 'type': 'uotod_mmdet.YOLOXHead'})


class LabelsOnly(FocalLoss):
    """A loss of mmdet's contract that takes labels and no soft targets."""

    def forward(self, pred, target, *args, **kwargs):
        if target.is_floating_point():
            raise TypeError('labels are integers')
        return super().forward(pred, target, *args, **kwargs)


def test_the_rule_of_fcos_may_be_an_assigner():
    """The rule's costs with Sinkhorn: each ground truth holds mass on the points that the rule allows."""
    rule = MODELS.build({**head_config('FCOSHead'), 'type': 'uotod_mmdet.FCOSHead'}).geometric_rule()
    assigner = dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        match_costs=rule['match_costs'],
        box_source='priors',
        gt_mass=3,
        reg=0.02,
        reg_pred=None,
        reg_target=1.0,
        background_cost=1.0,
        normalize_cost=False,
    )
    head = MODELS.build({**head_config('FCOSHead', train_cfg=dict(assigner=assigner)), 'type': 'uotod_mmdet.FCOSHead'})
    gts, _, metas = ground_truths(0, with_ignored=False)
    losses = head.loss_by_feat(*dense_outputs(head, 0), gts, metas)
    assert losses['unmatched_gts'] < 0.5 and losses['matched_mass'] > 3
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
