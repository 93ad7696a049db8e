"""Losses and match costs of others: one class and one decorator, and they train our heads on a soft plan."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from test_costs import images
from test_heads import plan_config
from tiny_models import NUM_CLASSES, build, images_and_samples
from torch import nn

from uotod_mmdet.costs import batch_cost, make_batch
from uotod_mmdet.plan import Reading, classification_losses, expand


@MODELS.register_module()
class SquaredQualityLoss(nn.Module):
    """Squared distance of the probabilities from qualities, (N, C), or from labels, which mmdet's denoising gives."""

    plan_reading = Reading(target='quality')

    def __init__(self, use_sigmoid=True, loss_weight=1.0):
        super().__init__()
        self.use_sigmoid, self.loss_weight = use_sigmoid, loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        if target.dim() == 1:
            target = F.one_hot(target, pred.size(1) + 1)[:, :-1]
        loss = (pred.sigmoid() - target).square().sum(1)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction_override or 'mean', avg_factor)


@MODELS.register_module()
class PolyLoss(nn.Module):
    """Cross-entropy plus 1 - p of the label (Leng et al., arXiv 2204.12511); says nothing of plans."""

    use_sigmoid = False

    def __init__(self, epsilon=1.0, loss_weight=1.0):
        super().__init__()
        self.epsilon, self.loss_weight = epsilon, loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        prob = pred.softmax(1).gather(1, target[:, None])[:, 0]
        loss = self.epsilon * (1 - prob) - prob.log()
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction_override or 'mean', avg_factor)


@TASK_UTILS.register_module()
class ShapeCost(BaseMatchCost):
    """Distance of the logarithms of widths and heights."""

    needs = 'bboxes', 'gt_bboxes'

    def batched(self, batch):
        return self.compare(batch.bboxes, batch.gt_bboxes)

    def compare(self, boxes, gt_boxes):
        shape, gt_shape = ((b[..., 2:] - b[..., :2]).clamp(min=1).log() for b in (boxes, gt_boxes))
        return self.weight * (shape[..., :, None, :] - gt_shape[..., None, :, :]).abs().sum(-1)

    def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        return self.compare(pred_instances.bboxes, gt_instances.bboxes)


class ShapeCostOfAnImage(ShapeCost):
    """A subclass, which states nothing by itself, is called one image at a time."""


@pytest.mark.parametrize('head', ['GFLHead', 'ATSSHead', 'DINOHead'])
@pytest.mark.slow
def test_a_loss_and_a_cost_of_others_train_a_head_on_a_soft_plan(head):
    model = plan_config(head, 'UnbalancedSinkhornAssigner')
    model.bbox_head.loss_cls = dict(type='SquaredQualityLoss', use_sigmoid=True, loss_weight=2.0)
    model.train_cfg.assigner.match_costs = [*model.train_cfg.assigner.match_costs, dict(type='ShapeCost', weight=0.5)]
    detector = build(model)
    bbox_head = detector.bbox_head
    assert type(bbox_head).__module__.startswith('uotod_mmdet.') and type(bbox_head.loss_cls) is SquaredQualityLoss
    assert type(bbox_head.assigner.match_costs[-1]) is ShapeCost
    data = detector.data_preprocessor(images_and_samples((3, 0, 2)), True)
    losses = detector(**data, mode='loss')
    total, logged = detector.parse_losses(losses)
    assert total.isfinite() and logged['matched_mass'] > 0 and logged['loss_cls'] > 0
    by_class = {name: p for name, p in bbox_head.named_parameters() if 'cls' in name}
    gradients = torch.autograd.grad(losses['loss_cls'], by_class.values(), retain_graph=True, allow_unused=True)
    assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) >= 2  # weight and bias
    before = {name: p.detach().clone() for name, p in by_class.items()}
    total.backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert detector.backbone.conv1.weight.grad.any()
    torch.optim.SGD(detector.parameters(), lr=1e-2).step()
    assert sum(not torch.equal(p, before[name]) for name, p in by_class.items()) >= 2


def test_the_batched_cost_is_the_cost_of_each_image():
    preds, gts, metas = images((3, 0, 7, 1))
    batch = make_batch(preds, gts, metas, 'bboxes')
    together = batch_cost([ShapeCost(0.5)], batch)
    assert together.any()
    torch.testing.assert_close(together, batch_cost([ShapeCostOfAnImage(0.5)], batch))
    for index, (pred, gt) in enumerate(zip(preds, gts)):
        assert torch.equal(together[index, :, len(gt) :], torch.zeros(40, 7 - len(gt), dtype=torch.float64))
        if len(gt):
            torch.testing.assert_close(together[index, :, : len(gt)], ShapeCost(0.5)(pred, gt))


def soft_plan(background):
    """A plan (2, 6, 4) of two images with 3 and 1 ground truths, and their labels (2, 3)."""
    generator = torch.Generator().manual_seed(0)
    plan = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64)
    plan[1, :, 1:3] = 0
    plan[0, 2] = 0  # ignored
    plan[:, 4, :3] = 0  # background
    plan = plan / plan.sum(2, keepdim=True).clamp(min=1e-9)
    columns = NUM_CLASSES + background
    return plan, torch.tensor([[0, 3, 1], [2, 0, 0]]), torch.randn(12, columns, generator=generator).double()


def gathered(loss, plan, labels, scores, quality, few=True):
    pairs = expand(plan, 0.0, few)
    found = classification_losses(
        loss, scores, labels.flatten()[pairs.gts], NUM_CLASSES, pairs, lambda: quality[pairs.rows, pairs.gts]
    )
    return found.view(plan.shape[:2])


def test_a_loss_that_states_nothing_equals_the_dense_formula():
    plan, labels, scores = soft_plan(background=True)
    loss = PolyLoss(loss_weight=1.5)
    scores.requires_grad_()
    every = [loss(scores, labels.new_full((12,), label), reduction_override='none') for label in range(NUM_CLASSES + 1)]
    every = torch.stack(every, 1).view(2, 6, -1)  # the loss of each prediction with each label
    of_pairs = every.gather(2, labels[:, None].expand(-1, 6, -1))
    dense = (plan[:, :, :-1] * of_pairs).sum(2) + plan[:, :, -1] * every[:, :, -1]
    found = gathered(loss, plan, labels, scores, None)
    torch.testing.assert_close(found, dense)
    of_found, of_dense = (torch.autograd.grad(values.sum(), scores, retain_graph=True)[0] for values in (found, dense))
    torch.testing.assert_close(of_found, of_dense)


@pytest.mark.parametrize('few', [True, False])
def test_a_quality_loss_equals_the_dense_formula(few, monkeypatch):
    if not few:  # as on a GPU: pairs that weigh nothing are listed, too
        monkeypatch.setattr('uotod_mmdet.ops.deferred.host_may_wait', lambda tensor: False)
    plan, labels, scores = soft_plan(background=False)
    corner = 20 * torch.rand(12, 2).double()
    boxes = torch.cat([corner, corner + 30], 1)
    quality = bbox_overlaps(boxes, boxes[:6] + 3)
    loss, mass = SquaredQualityLoss(loss_weight=1.5), plan.sum(2)
    of_pairs = quality.view(2, 6, 2, 3)[torch.arange(2), :, torch.arange(2)] * plan[:, :, :-1]
    target = torch.zeros(2, 6, NUM_CLASSES).double()
    target.scatter_add_(2, labels[:, None].expand(-1, 6, -1), of_pairs / mass[:, :, None].clamp(min=1e-9))
    dense = 1.5 * mass * (scores.view(2, 6, -1).sigmoid() - target).square().sum(2)
    torch.testing.assert_close(gathered(loss, plan, labels, scores, quality, few), dense)
