"""Our heads of masks: with a plan of zeros and ones they are mmdet's; with a soft one they weigh all pairs by it."""

import pytest
import torch
from mmcv.ops import point_sample
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from test_plan_heads import assert_same_losses
from tiny_masks import (
    CONFIGS,
    MASK_COSTS,
    NUM_CLASSES,
    NUM_QUERIES,
    SIZE,
    batch_with_masks,
    ground_truths,
    head_config,
    outputs,
    tiny_config,
)
from tiny_models import build, loss_of
from torch import nn

import uotod_mmdet.plan.masks as mask_losses
from uotod_mmdet.costs import batch_cost, make_batch
from uotod_mmdet.plan import Reading

HEADS = list(CONFIGS)
LAYERS = 3


def ours(head, name='HungarianAssigner', changes=(), **assigner):
    """Our head with an assigner of ours."""
    assigner = dict(type=f'uotod_mmdet.{name}', match_costs=MASK_COSTS, **assigner)
    return MODELS.build(head_config(head, True, assigner, **dict(changes)))


def soft(head, **changes):
    """Our head with a soft plan, all of whose pairs count."""
    return ours(head, 'BalancedSinkhornAssigner', dict(changes, min_weight=0), reg=0.05)


def losses_of(head, outs, gts, metas, seed=7):
    torch.manual_seed(seed)
    return head.loss_by_feat(*outs, gts, metas)


def plan_of(head, call):
    """The plan of a call, (L * B, N, M + 1), and what the call returned."""
    plans, match_batch = [], head.matcher.match_batch
    head.matcher.match_batch = lambda batch: plans.append(match_batch(batch)) or plans[-1]
    result = call()
    return plans[0].plan, result


# With a plan of zeros and ones each loss is mmdet's


@pytest.mark.parametrize('counts', [(4, 2), (3, 0, 5), (0, 0), (4,), (14, 1)], ids=str)
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('assigner', ["mmdet's", 'ours'])
@pytest.mark.parametrize('head', HEADS)
def test_a_head_with_a_hard_plan_is_mmdets(head, assigner, seed, counts):
    """Images without objects, one image alone and more objects than queries included; the seeds are of the points."""
    cfg = head_config(head, False)
    stock = MODELS.build(cfg)
    replaced = dict(cfg.train_cfg.assigner, type='uotod_mmdet.HungarianAssigner') if assigner == 'ours' else None
    found = MODELS.build(head_config(head, True, replaced))
    gts, metas = ground_truths(counts, seed)
    outs = outputs(LAYERS, len(counts), seed)
    stock_losses, our_losses = (losses_of(h, outs, gts, metas, seed) for h in (stock, found))
    assert_same_losses(stock_losses, our_losses, outs)
    assert our_losses['matched_mass'] == pytest.approx(sum(min(NUM_QUERIES, n) for n in counts) / len(counts))


@pytest.mark.parametrize('head', HEADS)
def test_other_losses_of_mmdet_are_weighed_as_by_its_head(head):
    losses = dict(
        loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0, 0.5, 2.0, 1.5, 0.3], loss_weight=0.7),
        loss_dice=dict(type='DiceLoss', naive_dice=False, loss_weight=2.0),
        loss_mask=dict(type='FocalLoss', use_sigmoid=True, gamma=1.5, alpha=0.4, loss_weight=3.0),
    )
    if head == 'MaskFormerHead':
        losses['loss_mask'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfgs = [head_config(head, of_ours, **losses) for of_ours in (False, True)]
    gts, metas = ground_truths((3, 0, 5))
    outs = outputs(LAYERS, 3)
    assert_same_losses(*(losses_of(MODELS.build(cfg), outs, gts, metas) for cfg in cfgs), outs)


@pytest.fixture
def same_points(monkeypatch):
    """torch.rand gives the same points in every call, for each image and prediction."""
    rand = torch.rand

    def fixed(*shape, **kwargs):
        *first, count, two = shape[0] if isinstance(shape[0], tuple) else shape
        generator = torch.Generator().manual_seed(count)
        return rand(count, two, generator=generator).expand(*first, count, two).clone()

    monkeypatch.setattr(torch, 'rand', fixed)


@pytest.mark.parametrize('head', HEADS)
def test_a_soft_plan_read_hard_is_what_mmdets_head_reads(head, same_points):
    """Its matched predictions are not as many as the objects, so mmdet draws other points; these are fixed here."""
    assigner = dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=MASK_COSTS, reg=0.05, gt_mass=2)
    stock = MODELS.build(head_config(head, False, assigner))
    found = ours(head, 'BalancedSinkhornAssigner', reg=0.05, gt_mass=2, hard=True)
    gts, metas = ground_truths((4, 0, 2))
    outs = outputs(LAYERS, 3)
    stock_losses, our_losses = (losses_of(h, outs, gts, metas) for h in (stock, found))
    assert our_losses['matched_mass'] > 2
    assert_same_losses(stock_losses, our_losses, outs)


# With a soft plan each loss is that of all pairs, weighted


def written_out(head, model, outs, gts, plan):
    """All losses as the plan's formula says, every prediction with every ground truth, in float64."""
    layers, images = outs[0].shape[:2]
    totals = {}
    for layer in range(layers):
        mass, cls_sum, cls_mass = 0, 0, 0
        sums = dict(loss_mask=0, loss_dice=0)
        for image, gt in enumerate(gts):
            scores, masks, count = outs[0][layer, image], outs[1][layer, image], len(gt)
            p = plan[layer * images + image][:, [*range(count), -1]].double()
            weight = torch.tensor(model.class_weight, dtype=torch.float64)[[*gt.labels.tolist(), NUM_CLASSES]]
            log_prob = scores.log_softmax(1)[:, [*gt.labels.tolist(), NUM_CLASSES]]
            cls_sum = cls_sum - (p * weight * log_prob).sum() * model.loss_cls.loss_weight
            cls_mass = cls_mass + (p * weight).sum()
            mass = mass + p[:, :-1].sum().clamp(min=1)
            truth = gt.masks.double()
            if head == 'Mask2FormerHead':
                with torch.no_grad():
                    points = get_uncertain_point_coords_with_randomness(
                        masks[:, None].float(), None, model.num_points, 3.0, 0.75
                    ).double()
                x = point_sample(masks[:, None], points)  # (N, 1, P)
                t = point_sample(truth[None].expand(len(masks), -1, -1, -1), points)  # (N, M, P)
                per_point = nn.functional.softplus(x) - x * t
            else:
                x = nn.functional.interpolate(masks[None], (SIZE, SIZE), mode='bilinear')[0].flatten(1)[:, None]
                t = truth.flatten(1)[None]
                prob = x.sigmoid()
                positive = -0.25 * (1 - prob) ** 2 * nn.functional.logsigmoid(x)
                negative = -0.75 * prob**2 * nn.functional.logsigmoid(-x)
                per_point = t * positive + (1 - t) * negative
            s, eps = x.sigmoid(), model.loss_dice.eps
            dice = 1 - (2 * (s * t).sum(2) + eps) / (s.sum(2) + t.sum(2) + eps)
            sums['loss_mask'] = sums['loss_mask'] + (p[:, :-1] * per_point.mean(2)).sum() * model.loss_mask.loss_weight
            sums['loss_dice'] = sums['loss_dice'] + (p[:, :-1] * dice).sum() * model.loss_dice.loss_weight
        prefix = '' if layer == layers - 1 else f'd{layer}.'
        totals.update({prefix + name: value / mass for name, value in sums.items()})
        totals[prefix + 'loss_cls'] = cls_sum / cls_mass
    return totals


@pytest.mark.slow
@pytest.mark.parametrize('way', ['products of matrices', 'blocks of pairs', 'all pairs at once'])
@pytest.mark.parametrize('head', HEADS)
def test_losses_and_gradients_of_a_soft_plan_are_those_of_its_formula(head, way, same_points, monkeypatch):
    model = soft(head)
    if way == 'products of matrices':
        monkeypatch.setattr(mask_losses, 'BLOCK', 3 * SIZE**2)  # more than one block
    else:
        model.dense = 2.0
        monkeypatch.setattr(mask_losses, 'BLOCK', 7 * 96 if way == 'blocks of pairs' else 1 << 30)
    gts, metas = ground_truths((4, 0, 2))
    outs = outputs(2, 3, dtype=torch.float64)
    plan, found = plan_of(model, lambda: losses_of(model, outs, gts, metas))
    assert ((plan > 1e-3).sum((1, 2)) > 2 * NUM_QUERIES).view(2, 3)[:, [0, 2]].all()
    expected = written_out(head, model, outs, gts, plan)
    assert expected.keys() == {name for name in found if 'loss' in name}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
        grads = [torch.autograd.grad(v, outs, retain_graph=True, allow_unused=True) for v in (found[name], value)]
        for leaf, found_grad, grad in zip(outs, *grads):
            found_grad, grad = (torch.zeros_like(leaf) if g is None else g for g in (found_grad, grad))
            torch.testing.assert_close(found_grad, grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize('head', HEADS)
def test_the_plan_of_an_image_is_independent_of_its_neighbours(head, same_points):
    model = soft(head)
    gts, metas = ground_truths((4, 2))
    outs = outputs(LAYERS, 2)
    both, _ = plan_of(model, lambda: losses_of(model, outs, gts, metas))
    for image, count in enumerate((4, 2)):
        of_one = [out[:, image : image + 1] for out in outs]
        alone, _ = plan_of(model, lambda: losses_of(model, of_one, gts[image : image + 1], metas[:1]))  # noqa: B023
        columns = [*range(count), -1]
        torch.testing.assert_close(
            both.view(LAYERS, 2, NUM_QUERIES, 5)[:, image][..., columns], alone, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize('head', HEADS)
def test_bf16_is_close_to_float32(head):
    model = soft(head)
    gts, metas = ground_truths((4, 2))
    outs = outputs(LAYERS, 2)
    halves = [out.bfloat16() for out in outs]
    expected = losses_of(model, [out.float() for out in halves], gts, metas)
    with torch.autocast('cpu', torch.bfloat16):
        found = losses_of(model, halves, gts, metas)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    'cost',
    [
        dict(type='CrossEntropyLossCost', weight=5.0),
        dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
        dict(type='DiceCost', naive_dice=False),
        dict(type='FocalLossCost', weight=20.0, binary_input=True, alpha=0.3),
    ],
    ids=lambda cost: cost['type'],
)
@pytest.mark.parametrize('repeats', [1, 3])
def test_costs_of_stacked_masks_are_mmdets(cost, repeats, monkeypatch):
    monkeypatch.setattr('uotod_mmdet.costs.mmdet_costs.BLOCK', 2 * NUM_QUERIES * 40)
    counts = (4, 0, 2)
    gts = [InstanceData(labels=torch.zeros(n).long(), masks=torch.rand(n, 40).round()) for n in counts]
    stacked = dict(scores=torch.randn(3 * repeats, NUM_QUERIES, 5), masks=5 * torch.randn(3 * repeats, NUM_QUERIES, 40))
    cost = TASK_UTILS.build(dict(cost))
    batch = make_batch(stacked, gts, repeats=repeats)
    assert batch.masks is not None and batch.gt_masks.shape == (3, 4, 40)
    found = batch_cost([cost], batch)
    for index, masks in enumerate(stacked['masks']):
        expected = cost(InstanceData(scores=masks[:, :5], masks=masks), gts[index % 3])
        torch.testing.assert_close(found[index, :, : expected.size(1)], expected, rtol=1e-5, atol=1e-5)


# Real detectors


def trained(head, assigner, steps, of_ours=True):
    """Total loss of each step of a tiny detector on two images."""
    detector = build(tiny_config(head, of_ours, assigner))
    batch = batch_with_masks()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = loss_of(detector, batch)
        total.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        history.append(total.item())
    return history


@pytest.mark.slow
@pytest.mark.parametrize('name', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
@pytest.mark.parametrize('head', HEADS)
def test_a_detector_overfits_two_images_on_a_soft_plan(head, name):
    history = trained(head, dict(type=f'uotod_mmdet.{name}', match_costs=MASK_COSTS, reg=0.01), 50)
    assert sum(history[-5:]) / 5 < 0.5 * history[0], history[::10]


@pytest.mark.slow
@pytest.mark.parametrize('head', HEADS)
def test_a_detector_trains_and_predicts_as_mmdets(head):
    """The same steps from the same seed: losses of the whole model, and what it predicts then."""
    found = {}
    for of_ours in (False, True):
        detector = build(tiny_config(head, of_ours))
        batch = batch_with_masks((3, 0))
        optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
        history = []
        for _ in range(3):
            optimizer.zero_grad()
            total = loss_of(detector, batch)
            total.backward()
            optimizer.step()
            history.append(total.item())
        data = detector.data_preprocessor(dict(inputs=batch['inputs'], data_samples=batch['data_samples']), False)
        with torch.no_grad():
            found[of_ours] = history, [tensor.clone() for tensor in detector.eval()(**data, mode='tensor')[0]]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    for our, stock in zip(found[True][1], found[False][1]):
        torch.testing.assert_close(our, stock, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('head', HEADS)
def test_stuff_of_panoptic_segmentation_is_matched_as_by_mmdets(head):
    changes = dict(num_things_classes=2, num_stuff_classes=NUM_CLASSES - 2)
    stock, found = (MODELS.build(head_config(head, of_ours, **changes)) for of_ours in (False, True))
    gts, metas = ground_truths((3, 1))
    semantic = torch.full((1, SIZE, SIZE), 255, dtype=torch.long)
    semantic[:, :20], semantic[:, 40:] = 2, 3
    for gt in gts:
        gt.labels = gt.labels % 2
        masks = gt.pop('masks').byte().numpy()
        gt.masks = BitmapMasks(masks, SIZE, SIZE)
    outs = outputs(LAYERS, 2)
    losses = []
    for model in (stock, found):
        whole = model.preprocess_gt(gts, [PixelData(sem_seg=semantic)] * 2)
        assert [len(gt) for gt in whole] == [5, 3]
        losses.append(losses_of(model, outs, whole, metas))
    assert_same_losses(*losses, outs)


# What cannot be trained is refused in a sentence


@pytest.mark.parametrize('head', HEADS)
def test_assigners_that_read_boxes_or_priors_are_refused(head):
    with pytest.raises(ValueError, match='MaxIoUAssigner reads priors, which a head of queries does not have: take'):
        MODELS.build(head_config(head, True, dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5)))
    gts, metas = ground_truths()
    for prefix in ('', 'uotod_mmdet.'):
        boxes = dict(type=f'{prefix}HungarianAssigner', match_costs=[dict(type='IoUCost')])
        model = MODELS.build(head_config(head, True, boxes))
        with pytest.raises(
            ValueError, match=r"IoUCost needs bboxes|HungarianAssigner reads what .*'bboxes'.*masks, sc"
        ):
            losses_of(model, outputs(), gts, metas)


@pytest.mark.parametrize('head', HEADS)
def test_samplers_other_than_mmdets_pseudo_sampler_of_masks_are_refused(head):
    cfg = head_config(head)
    cfg.train_cfg.sampler = dict(type='PseudoSampler')
    with pytest.raises(
        ValueError,
        match=rf"{head} .*cannot sample: set train_cfg.sampler .now Ps.* 'MaskPseudoSampler'|MaskPseudoSampler",
    ):
        MODELS.build(cfg)


class LossOfTheBatch(nn.Module):
    """A third-party loss that gives one number for all masks."""

    reduction = 'mean'

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return (pred - target).abs().mean()


class LossOfQualities(LossOfTheBatch):
    """A third-party loss that wants the quality of each pair."""

    plan_reading = Reading(target='quality')

    def __init__(self, class_weight):
        super().__init__()


class LossWithoutClasses(nn.CrossEntropyLoss):
    """A third-party loss that does not keep the class weights of its config."""

    def __init__(self, class_weight):
        super().__init__()

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        losses = nn.functional.cross_entropy(pred, target, reduction='none') * weight
        return losses if reduction_override == 'none' else losses.sum() / avg_factor


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(loss_dice=dict(type=LossOfTheBatch)),
            'a plan cannot weigh loss_dice=LossOfTheBatch: .*Losses that fit: DiceLoss',
        ),
        (
            dict(loss_mask=dict(type=LossOfTheBatch)),
            'a plan cannot weigh loss_mask=LossOfTheBatch: .*CrossEntropyLoss and Fo',
        ),
        (
            dict(loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=False)),
            'a plan cannot weigh loss_mask=CrossEntropyLoss',
        ),
        (dict(loss_dice=dict(type='DiceLoss', reduction='sum')), "loss_dice=DiceLoss has reduction='sum'"),
        (
            dict(loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * NUM_CLASSES)),
            f'class_weight of CrossEntropyLoss holds {NUM_CLASSES} .* give a list of {NUM_CLASSES + 1}',
        ),
        (
            dict(loss_cls=dict(type=LossOfQualities, class_weight=[1.0] * (NUM_CLASSES + 1))),
            'loss_cls=LossOfQualities reads the IoU of boxes, which this head does not predict: take dict.type=',
        ),
        (
            dict(loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True)),
            'class_weight of loss_cls must be a list of numbers, one for each class .* got None: take dict.type=',
        ),
        (
            dict(loss_cls=dict(type=LossWithoutClasses, class_weight=[1.0] * NUM_CLASSES)),
            f'class_weight of loss_cls holds {NUM_CLASSES} numbers, .* give a list of {NUM_CLASSES + 1}',
        ),
        (dict(min_weight=2), r'min_weight must be in \[0, 1\), got 2'),
    ],
)
@pytest.mark.parametrize('head', HEADS)
def test_losses_that_a_plan_cannot_weigh_are_refused(head, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build(head_config(head, **changes))


@pytest.mark.parametrize('head', HEADS)
def test_masks_of_another_size_than_the_padded_images_are_named(head):
    """mmdet stacks them: it fails without a name, or, in one image, trains on masks that lie elsewhere."""
    model, outs = ours(head), outputs()
    gts, metas = ground_truths()
    gts[1].masks = gts[1].masks[:, :48]
    message = rf'{head}: batch_gt_instances\[1\].masks are of 48 x 64 pixels, but .* 64 x 64: pad masks .*pad_mask=True'
    for known in (metas, [dict(img_shape=meta['img_shape']) for meta in metas]):
        with pytest.raises(ValueError, match=message):
            losses_of(model, outs, gts, known)
    gts[1] = InstanceData(labels=gts[1].labels, masks=gts[1].masks[:, 0])
    with pytest.raises(
        ValueError, match=r'\[1\].masks must be a tensor of shape \(M, H, W\) .* 2 labels, .* got \(2, 64\)'
    ):
        losses_of(model, outs, gts, metas)


@pytest.mark.parametrize('head', HEADS)
def test_predictions_of_another_shape_are_named(head):
    model = ours(head)
    gts, metas = ground_truths()
    scores, masks = outputs()
    for outs, message in {
        (scores[..., :-1], masks): r'all_cls_scores\[0\] must have shape \(B, N, C \+ 1\), here \(any, any, 5\)',
        (scores, masks[:, :, 1:]): r'all_mask_preds\[0\] must have shape \(B, N, h, w\), here \(2, 12, any, any\)',
        (scores[:2], masks): 'must hold the same decoder layers, at least one, got 2 and 3',
        (scores[:, :1], masks[:, :1]): 'batch_gt_instances must be a list of one entry for each of the 1 images',
    }.items():
        with pytest.raises(ValueError, match=message):
            losses_of(model, outs, gts, metas)
    with pytest.raises(TypeError, match=r'all_mask_preds\[0\] must be a floating-point tensor'):
        losses_of(model, (scores, masks.long()), gts, metas)
    gts[0].labels[0] = NUM_CLASSES
    with pytest.raises(ValueError, match=f'labels holds .*{NUM_CLASSES}, but num_classes={NUM_CLASSES}'):
        losses_of(model, (scores, masks), gts, metas)


@pytest.mark.parametrize('prefix', ['', 'uotod_mmdet.'])
@pytest.mark.parametrize('head', HEADS)
def test_nan_logits_are_named(head, prefix):
    model = MODELS.build(head_config(head, True, dict(type=f'{prefix}HungarianAssigner', match_costs=MASK_COSTS)))
    gts, metas = ground_truths()
    with torch.no_grad():
        scores, masks = outputs()
        masks[1, 1, 5] = float('nan')
        term = 'CrossEntropyLossCost is not finite at 2 of 24 pairs .* of image 3 of the batch'
        with pytest.raises(ValueError, match=term if prefix else 'HungarianAssigner failed .* masks of predictions'):
            losses_of(model, (scores, masks), gts, metas)
        scores, masks = outputs()
        scores[0, 0, 3] = float('nan')
        term = 'ClassificationCost is not finite at 4 of 48 pairs'
        with pytest.raises(ValueError, match=term if prefix else 'HungarianAssigner failed .* scores of predictions'):
            losses_of(model, (scores, masks), gts, metas)
        nothing, _ = ground_truths((0, 0))
        with pytest.raises(
            ValueError, match='loss_cls not finite: all_cls_scores holds 5 NaN|loss_cls not finite: all_cls'
        ):
            losses_of(model, (scores, masks), nothing, metas)
