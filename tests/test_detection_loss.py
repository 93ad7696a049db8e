"""DetectionLoss against a dense float64 evaluation of its formula, against mmdet's losses, and with bad input."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from uotod_mmdet.assigners import batch_matcher
from uotod_mmdet.costs import make_batch
from uotod_mmdet.losses.checks import box_limit
from uotod_mmdet.plan import MIN_WEIGHT, box_losses, expand, pair_losses
from uotod_mmdet.registry import MODELS, TASK_UTILS

B, N, M, CLASSES = 3, 14, 4, 5
COSTS = [dict(type='BBoxL1Cost', weight=1.0), dict(type='IoUCost', iou_mode='giou', weight=2.0)]


def random_boxes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 0.6
    size = 0.05 + 0.35 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + size], -1)


def random_case(seed: int, position: str, batch: int = B, num_preds: int = N, num_gts: int = M) -> dict:
    """Predictions, padded targets whose second image is empty, and anchors, in float64."""
    generator = torch.Generator().manual_seed(seed)
    low = int(position == 'first')
    mask = torch.rand(batch, num_gts, generator=generator) < 0.7
    mask[1 % batch] = False
    return dict(
        input=dict(
            pred_logits=2
            * torch.randn(batch, num_preds, CLASSES + (position != 'none'), generator=generator, dtype=torch.float64),
            pred_boxes=random_boxes(batch, num_preds, generator=generator),
        ),
        target=dict(
            labels=torch.randint(low, low + CLASSES, (batch, num_gts), generator=generator),
            boxes=random_boxes(batch, num_gts, generator=generator),
            mask=mask,
        ),
        anchors=random_boxes(num_preds, generator=generator),
    )


def iou_and_union(pred: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top_left = torch.maximum(pred[..., :2], target[..., :2])
    overlap = (torch.minimum(pred[..., 2:], target[..., 2:]) - top_left).clamp(min=0).prod(-1)
    union = (pred[..., 2:] - pred[..., :2]).prod(-1) + (target[..., 2:] - target[..., :2]).prod(-1) - overlap
    return overlap / union, union


def giou_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    iou, union = iou_and_union(pred, target)
    hull = (torch.maximum(pred[..., 2:], target[..., 2:]) - torch.minimum(pred[..., :2], target[..., :2])).prod(-1)
    return 1 - iou + (hull - union) / hull


def cross_entropy(logits: torch.Tensor, label: torch.Tensor, class_weight: torch.Tensor) -> torch.Tensor:
    return class_weight[label] * -logits.log_softmax(-1).gather(-1, label[..., None])[..., 0]


def focal(logits: torch.Tensor, label: torch.Tensor, class_weight: torch.Tensor) -> torch.Tensor:
    hot = F.one_hot(label, CLASSES + 1)[..., :CLASSES].to(logits.dtype)
    prob = logits.sigmoid()
    positive = -0.25 * (1 - prob) ** 2 * prob.log() * hot
    return (positive - 0.75 * prob**2 * (1 - prob).log() * (1 - hot)).sum(-1)


def dense_loss(case, plan, classify, localise, class_weight, background, ratio, has_background, reduction):
    """N sum_i sum_j P_ij (L_cls + L_loc), every prediction with every ground truth, as the formula says."""
    logits, boxes = case['input']['pred_logits'], case['input']['pred_boxes']
    labels, gt_boxes, mask = case['target']['labels'], case['target']['boxes'], case['target']['mask']
    batch, preds, gts = *logits.shape[:2], labels.size(1)
    labels = labels.where(mask, labels.new_zeros(()))
    per_pair = (batch, preds, gts)
    pair_logits = logits[:, :, None].expand(*per_pair, -1)
    pair_labels = labels[:, None].expand(per_pair)
    pair_boxes, pair_gts = boxes[:, :, None].expand(*per_pair, 4), gt_boxes[:, None].expand(*per_pair, 4)
    matched, to_background = plan[:, :, :-1], plan[:, :, -1]
    localisation = (matched * localise(pair_boxes, pair_gts)).sum(2)
    positive = (matched * classify(pair_logits, pair_labels, class_weight)).sum(2)
    negative = to_background * classify(
        logits, torch.full_like(labels[:, :1], background).expand(batch, preds), class_weight
    )
    if ratio is not None:
        for image in range(batch):
            keep = int(torch.round(ratio * matched[image].sum()))
            order = negative[image].detach().argsort(descending=True)
            negative[image, order[keep:]] = 0
    if reduction == 'none':
        return positive + negative + localisation
    if reduction == 'sum':
        return (positive + negative + localisation).sum()
    mass = (matched * class_weight[pair_labels]).sum()
    if has_background and ratio is None:
        mass = mass + to_background.sum() * class_weight[background]
    return (positive + negative).sum() / mass.clamp(min=1) + localisation.sum() / matched.sum().clamp(min=1)


ASSIGNERS = [
    dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner', match_costs=COSTS, reg=0.05, reg_target=0.5, background_cost=0.3
    ),
    dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=COSTS, gt_mass=2),
    dict(type='uotod_mmdet.HungarianAssigner', match_costs=COSTS),
    dict(type='HungarianAssigner', match_costs=COSTS),
    dict(type='uotod_mmdet.SoftMinAssigner', match_costs=COSTS, source='prediction', background_cost=0.1),
]
CASES = [
    pytest.param(*case, seed, marks=[pytest.mark.slow] * (seed > 0))
    for case in itertools.product(
        ('first', 'last', 'none'), (False, True), (None, 1.5), ('none', 'mean', 'sum'), (False, True)
    )
    for seed in range(4)
    if not (case[0] == 'none' and case[1])
]


@pytest.mark.parametrize('position, weighted, ratio, reduction, with_anchors, seed', CASES)
def test_equals_the_dense_formula(position, weighted, ratio, reduction, with_anchors, seed):
    case = random_case(seed, position)
    columns = CLASSES + (position != 'none')
    background = dict(first=0, last=CLASSES, none=CLASSES)[position]
    class_weight = torch.ones(CLASSES + 1, dtype=torch.float64)
    loss_cls = dict(type='FocalLoss') if position == 'none' else dict(type='CrossEntropyLoss')
    if weighted:
        class_weight = 0.5 + torch.rand(columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        loss_cls['class_weight'] = class_weight.tolist()
    assigner = dict(ASSIGNERS[seed])
    if with_anchors:
        assigner = dict(ASSIGNERS[(seed + 1) % 3], box_source='priors')
    several = seed % 2
    loss_bbox = [dict(type='L1Loss', loss_weight=5.0), dict(type='GIoULoss', loss_weight=2.0)]
    module = MODELS.build(
        dict(
            type='uotod_mmdet.DetectionLoss',
            loss_cls=loss_cls,
            loss_bbox=loss_bbox if several else loss_bbox[1],
            assigner=assigner,
            bg_class_position=position,
            use_hard_negative_mining=ratio is not None,
            neg_to_pos_ratio=ratio,
            min_weight=0,
            reduction=reduction,
            loss_weight=0.5,
        )
    )
    anchors = case['anchors'] if with_anchors else None
    leaves = [leaf.requires_grad_() for leaf in case['input'].values()]
    found = module(case['input'], case['target'], anchors)

    mask = case['target']['mask']
    predictions = dict(scores=case['input']['pred_logits'], bboxes=case['input']['pred_boxes'])
    if with_anchors:
        predictions['priors'] = anchors.expand(B, -1, -1)
    gts = [
        InstanceData(labels=labels[real], bboxes=boxes[real])
        for labels, boxes, real in zip(case['target']['labels'], case['target']['boxes'], mask)
    ]
    batch = make_batch(predictions, gts, [dict(img_shape=(1, 1))] * B, assigner.get('box_source', 'auto'))
    compact = batch_matcher(TASK_UTILS.build(assigner)).match_batch(batch).plan
    plan = compact.new_zeros(B, N, M + 1)  # in the columns of the padded targets
    for image, real in enumerate(mask):
        plan[image, :, :-1][:, real] = compact[image, :, : real.sum()]
    plan[:, :, -1] = compact[:, :, -1]

    def localise(pred, target):
        giou = 2 * giou_loss(pred, target)
        return giou + 5 * (pred - target).abs().sum(-1) if several else giou

    classify = focal if position == 'none' else cross_entropy
    expected = 0.5 * dense_loss(
        case, plan, classify, localise, class_weight, background, ratio, position != 'none', reduction
    )
    assert found.shape == ((B, N) if reduction == 'none' else ())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for g, e in zip(torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)):
        torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-6)


def build(loss_cls='FocalLoss', position='none', assigner=ASSIGNERS[0], **kwargs):
    loss_cls = dict(type=loss_cls) if isinstance(loss_cls, str) else loss_cls
    kwargs.setdefault('loss_bbox', [dict(type='L1Loss'), dict(type='GIoULoss')])
    return MODELS.build(
        dict(
            type='uotod_mmdet.DetectionLoss',
            loss_cls=loss_cls,
            assigner=assigner,
            bg_class_position=position,
            **kwargs,
        )
    )


def with_plan(module, plan):
    """Let the assigner hand out a given plan: finite differences must not move it, or it is the bad input."""
    module.assigner._solve = lambda *args: plan.clone()
    return module


@pytest.mark.parametrize(
    'loss_cls, position',
    [('CrossEntropyLoss', 'last'), ('CrossEntropyLoss', 'first'), ('FocalLoss', 'none')],
)
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.slow
def test_gradcheck(loss_cls, position, reduction):
    case = random_case(0, position, batch=2, num_preds=5, num_gts=3)
    case['target']['mask'][:] = torch.tensor([[True, True, False], [True, False, False]])
    plan = torch.rand(2, 5, 3, dtype=torch.float64)  # two ground truths at most, and the background
    plan[1, :, 1] = 0
    module = with_plan(build(loss_cls, position, reduction=reduction, min_weight=0), plan)

    def loss(logits, boxes):
        return module(dict(pred_logits=logits, pred_boxes=boxes), case['target'])

    leaves = [case['input'][name].requires_grad_() for name in ('pred_logits', 'pred_boxes')]
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize('scope', ['', 'uotod_mmdet.'])
@pytest.mark.parametrize('loss_cls', ['QualityFocalLoss', 'VarifocalLoss'])
def test_quality_losses_get_the_iou_of_the_pairs(loss_cls, scope):
    """With a one-hot plan the loss is mmdet's on the target that its heads would build."""
    case = random_case(2, 'none')
    gts, mask = case['target'], case['target']['mask']
    module = build(dict(type=scope + loss_cls), assigner=dict(type='HungarianAssigner', match_costs=COSTS))
    found = module.loss_terms(case['input'], gts, avg_factor=7.0)['loss_cls']
    target = torch.zeros(B, N, CLASSES, dtype=torch.float64)
    for image in range(B):
        pred = InstanceData(scores=case['input']['pred_logits'][image], bboxes=case['input']['pred_boxes'][image])
        gt = InstanceData(labels=gts['labels'][image][mask[image]], bboxes=gts['boxes'][image][mask[image]])
        result = module.assigner.assign(pred, gt, img_meta=dict(img_shape=(1, 1)))
        for row in (result.gt_inds > 0).nonzero()[:, 0].tolist():
            index = result.gt_inds[row] - 1
            target[image, row, gt.labels[index]] = iou_and_union(pred.bboxes[row], gt.bboxes[index])[0]
    stock = MODELS.build(dict(type=loss_cls))
    expected = stock(case['input']['pred_logits'].flatten(0, 1), target.flatten(0, 1), avg_factor=7.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_list_of_instances_is_the_padded_target():
    case = random_case(1, 'last')
    module = build('CrossEntropyLoss', 'last')
    target = case['target']
    instances = [
        InstanceData(labels=labels[mask], bboxes=boxes[mask])
        for labels, boxes, mask in zip(target['labels'], target['boxes'], target['mask'])
    ]
    expected = module.loss_terms(case['input'], target)
    found = module.loss_terms(case['input'], instances)
    assert expected.keys() == found.keys() >= {'loss_cls', 'loss_bbox_l1', 'loss_bbox_giou', 'matched_mass'}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    total = sum(value for name, value in expected.items() if name.startswith('loss'))
    torch.testing.assert_close(module(case['input'], target), total)


def test_weight_avg_factor_and_override():
    case = random_case(3, 'last')
    module = build('CrossEntropyLoss', 'last')
    rows = module(case['input'], case['target'], reduction_override='none')
    weight = torch.rand(B, N, dtype=torch.float64)
    call = dict(input=case['input'], target=case['target'], weight=weight)
    torch.testing.assert_close(module(**call, reduction_override='none'), rows * weight)
    torch.testing.assert_close(module(**call, reduction_override='sum'), (rows * weight).sum())
    torch.testing.assert_close(module(**call, avg_factor=11.0), (rows * weight).sum() / 11)
    torch.testing.assert_close(module(**call, avg_factor=11.0, reduction_override='none'), rows * weight)
    with pytest.raises(ValueError, match="avg_factor cannot be used with reduction='sum'"):
        module(**call, avg_factor=11.0, reduction_override='sum')


def test_class_agnostic_input_and_a_single_box_loss():
    case = random_case(4, 'none')
    terms = build(loss_bbox=dict(type='CIoULoss')).loss_terms(case['input'], case['target'])
    assert {'loss_cls', 'loss_bbox'} < terms.keys()
    assert all(torch.isfinite(value) for value in terms.values())


@pytest.mark.parametrize('shape', [(8, 900, 50), (2, 8732, 20)])
@pytest.mark.parametrize('assigner', ASSIGNERS[:2])
def test_what_the_default_min_weight_drops_is_nothing_to_the_loss(assigner, shape):
    batch, num_preds, num_gts = shape
    case = random_case(5, 'last', batch, num_preds, num_gts)
    losses = {
        weight: build('CrossEntropyLoss', 'last', assigner, min_weight=weight)(case['input'], case['target'])
        for weight in (0, MIN_WEIGHT)
    }
    torch.testing.assert_close(losses[MIN_WEIGHT], losses[0], rtol=1e-3, atol=0)


def test_min_weight_drops_the_pairs_below_it():
    plan = torch.tensor([[[0.5, 0.0, 0.5], [0.009, 0.3, 0.691]]])
    pairs = expand(plan, 0.01)
    assert pairs.rows.tolist() == [0, 1] and pairs.gts.tolist() == [0, 1]
    assert expand(plan, 0).weight.tolist() == pytest.approx([0.5, 0.009, 0.3])
    assert torch.equal(expand(plan, 0.01).background, torch.tensor([0.5, 0.691]))
    with pytest.raises(ValueError, match=r'min_weight must be in \[0, 1\), got 2'):
        build(min_weight=2)


def test_only_empty_images_give_the_background_loss():
    case = random_case(6, 'last')
    case['target']['mask'][:] = False
    leaves = [leaf.requires_grad_() for leaf in case['input'].values()]
    module = build('CrossEntropyLoss', 'last')
    terms = module.loss_terms(case['input'], case['target'])
    labels = torch.full((B * N,), CLASSES)
    expected = F.cross_entropy(case['input']['pred_logits'].flatten(0, 1), labels)
    torch.testing.assert_close(terms['loss_cls'], expected)
    assert terms['loss_bbox_l1'] == 0 and terms['matched_mass'] == 0
    grads = torch.autograd.grad(sum(v for k, v in terms.items() if 'loss' in k), leaves)
    assert grads[0].abs().sum() > 0 and grads[1].abs().sum() == 0
    empty = [InstanceData(labels=torch.zeros(0, dtype=torch.long), bboxes=torch.zeros(0, 4)) for _ in range(B)]
    torch.testing.assert_close(module(case['input'], empty), terms['loss_cls'])


def test_bf16_autocast_is_close_to_float32():
    case = random_case(7, 'last')
    module = build('CrossEntropyLoss', 'last')
    layer = torch.nn.Linear(16, CLASSES + 1)
    features = torch.randn(B, N, 16)
    boxes, target = case['input']['pred_boxes'].float(), case['target']
    expected = module(dict(pred_logits=layer(features), pred_boxes=boxes), target)
    with torch.autocast('cpu', torch.bfloat16):
        logits = layer(features)
        assert logits.dtype == torch.bfloat16
        found = module(dict(pred_logits=logits, pred_boxes=boxes.bfloat16()), target)
    assert torch.isfinite(found)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def changed(case: dict, **changes) -> dict:
    return {**case, **changes}


def test_bad_input_is_named():
    case = random_case(8, 'last')
    module = build('CrossEntropyLoss', 'last')
    pred, target = case['input'], case['target']
    one_less = {name: value[:2] for name, value in target.items()}
    with pytest.raises(ValueError, match=r'labels must have shape \(B, M\) with the B = 3 images .* got \(2, 4\)'):
        module(pred, one_less)
    with pytest.raises(ValueError, match='target holds 2 images, but pred_logits and pred_boxes hold 3'):
        module(pred, [InstanceData(labels=torch.tensor([1]), bboxes=torch.rand(1, 4))] * 2)
    with pytest.raises(ValueError, match=r'pred_boxes must have shape \(3, 14, 4\); got \(2, 14, 4\)'):
        module(changed(pred, pred_boxes=pred['pred_boxes'][:2]), target)
    with pytest.raises(TypeError, match=r"input needs pred_logits and pred_boxes, got \['pred_boxes'\]"):
        module(dict(pred_boxes=pred['pred_boxes']), target)
    with pytest.raises(ValueError, match=r'anchors must have shape \(14, 4\) or \(3, 14, 4\).* got \(7, 4\)'):
        module(pred, target, case['anchors'][:7])
    with pytest.raises(ValueError, match=r'weight must have shape \(3, 14\); got \(14,\)'):
        module(pred, target, weight=torch.ones(14))
    with pytest.raises(TypeError, match='labels must hold integers'):
        module(pred, changed(target, labels=target['labels'].float()))


@pytest.mark.parametrize(
    'position, label, classes', [('last', 5, '0 to 4'), ('first', 0, '1 to 5'), ('none', 5, '0 to 4')]
)
def test_the_background_among_the_ground_truths_is_named(position, label, classes):
    case = random_case(9, position)
    case['target']['mask'][0] = True
    case['target']['labels'][0, 0] = label
    module = build('FocalLoss' if position == 'none' else 'CrossEntropyLoss', position)
    with pytest.raises(ValueError, match=f'labels hold .* foreground classes of pred_logits .* are {classes}'):
        module(case['input'], case['target'])


def test_a_class_count_that_does_not_fit_the_background_is_named():
    with pytest.raises(ValueError, match="FocalLoss scores each class by a sigmoid .* got bg_class_position='last'"):
        build('FocalLoss', 'last')
    with pytest.raises(ValueError, match="CrossEntropyLoss is a softmax .* got 'none'"):
        build('CrossEntropyLoss', 'none')
    with pytest.raises(ValueError, match="bg_class_position must be one of .* got 'middle'"):
        build('CrossEntropyLoss', 'middle')
    case = random_case(10, 'last')
    one_column = changed(case['input'], pred_logits=case['input']['pred_logits'][..., :1])
    with pytest.raises(ValueError, match='1 column.*no class beside the background'):
        build('CrossEntropyLoss', 'last')(one_column, case['target'])
    weighted = build(dict(type='CrossEntropyLoss', class_weight=[1.0] * CLASSES), 'last')
    with pytest.raises(ValueError, match='class_weight of CrossEntropyLoss holds 5 .*the scores have 6 columns'):
        weighted(case['input'], case['target'])


def test_boxes_given_by_width_and_height_are_named():
    case = random_case(11, 'none')
    module = build()
    case['target']['mask'][0] = True
    target = changed(case['target'], boxes=case['target']['boxes'].clone())
    target['boxes'][0, 1] = torch.tensor([0.5, 0.5, 0.2, 0.1])
    with pytest.raises(
        ValueError, match=r'target boxes must be \(x1, y1, x2, y2\), .* \[0.5, 0.5, 0.2.*need converting'
    ):
        module(case['input'], target)
    pred = changed(case['input'], pred_boxes=torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(B, N, 4).double())
    with pytest.raises(ValueError, match=r'pred_boxes must be \(x1, y1, x2, y2\)'):
        module(pred, case['target'])


def test_mining_needs_its_ratio():
    with pytest.raises(ValueError, match='use_hard_negative_mining needs neg_to_pos_ratio'):
        build(use_hard_negative_mining=True)
    with pytest.raises(ValueError, match='neg_to_pos_ratio=3 has no effect without use_hard_negative_mining=True'):
        build(neg_to_pos_ratio=3)
    with pytest.raises(ValueError, match='QualityFocalLoss weighs hard negatives by itself'):
        build('QualityFocalLoss', use_hard_negative_mining=True, neg_to_pos_ratio=3)


def test_a_plan_of_a_wrong_shape_is_named():
    case = random_case(12, 'none')
    module = with_plan(build(), torch.rand(B, N, M))
    case['target']['mask'][0] = True
    with pytest.raises(ValueError, match=r'plan of shape \(3, 14, 4\), but 14 predictions and 4 .* need \(3, 14, 5\)'):
        module(case['input'], case['target'])

    from mmdet.models.task_modules.assigners import AssignResult

    module = build(assigner=dict(type='HungarianAssigner', match_costs=COSTS))
    module.assigner.assign = lambda *args, **kwargs: AssignResult(1, torch.zeros(3, dtype=torch.long), None, None)
    with pytest.raises(ValueError, match=r'HungarianAssigner answered with gt_inds of shape \(3,\) for 14 predictions'):
        module(case['input'], case['target'])


@pytest.mark.parametrize('name', ['pred_logits', 'pred_boxes'])
def test_nan_is_named_before_the_solver_runs(name):
    case = random_case(13, 'last')
    module = build('CrossEntropyLoss', 'last')
    module.assigner._solve = lambda *args: pytest.fail('the solver ran')
    case['input'][name][0, 2] = float('nan')
    with pytest.raises(ValueError, match=f'{name} holds . NaN or infinite'):
        module(case['input'], case['target'])


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize('loss_cls', ['CrossEntropyLoss', 'FocalLoss', 'QualityFocalLoss', 'VarifocalLoss'])
@pytest.mark.parametrize('logits, boxes', [pair for pair in itertools.permutations(DTYPES, 2)])
def test_mixed_dtypes_are_computed_in_the_wider_and_each_gradient_has_its_own(loss_cls, logits, boxes):
    position = 'last' if loss_cls == 'CrossEntropyLoss' else 'none'
    case = random_case(14, position)
    module = build(loss_cls, position, assigner=ASSIGNERS[2])
    given = dict(pred_logits=case['input']['pred_logits'].to(logits), pred_boxes=case['input']['pred_boxes'].to(boxes))
    leaves = [leaf.requires_grad_() for leaf in given.values()]
    loss = module(given, case['target'])
    wide = torch.promote_types(torch.promote_types(logits, boxes), torch.float32)
    assert loss.dtype == wide
    gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.dtype for gradient in gradients] == [logits, boxes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = module(dict(pred_logits=exact[0], pred_boxes=exact[1]), case['target'])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    for found, right in zip(gradients, torch.autograd.grad(expected, exact)):
        close = dict(rtol=1e-4, atol=1e-5) if torch.finfo(found.dtype).bits > 16 else dict(rtol=0.02, atol=1e-3)
        torch.testing.assert_close(found.double(), right, **close)


@pytest.mark.parametrize('labels', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize('boxes', [torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_targets_of_every_dtype_and_box_type_are_the_same_targets(labels, boxes):
    case = random_case(15, 'last')
    pred = dict(case['input'], pred_boxes=(case['input']['pred_boxes'] * 100).requires_grad_())
    target = dict(case['target'], boxes=(case['target']['boxes'] * 100).round())
    anchors = case['anchors'] * 100
    module = build('CrossEntropyLoss', 'last', assigner=dict(ASSIGNERS[1], box_source='priors'))
    expected = module(pred, target, anchors)
    given = dict(target, labels=target['labels'].to(labels), boxes=target['boxes'].to(boxes))
    torch.testing.assert_close(module(pred, given, anchors), expected)
    typed = dict(pred, pred_boxes=HorizontalBoxes(pred['pred_boxes']))
    given['boxes'] = HorizontalBoxes(given['boxes'], dtype=boxes)
    torch.testing.assert_close(module(typed, given, HorizontalBoxes(anchors)), expected)
    as_list = [
        InstanceData(labels=label[real], bboxes=HorizontalBoxes(box[real], dtype=boxes))
        for label, box, real in zip(given['labels'], given['boxes'].tensor, target['mask'])
    ]
    assert not len(as_list[1])
    as_list[1] = InstanceData(labels=torch.zeros(0), bboxes=torch.zeros(0, 4))  # torch's default dtype
    torch.testing.assert_close(module(pred, as_list, anchors), expected)


@pytest.mark.parametrize(
    'loss_bbox',
    ['L1Loss', 'SmoothL1Loss', 'IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'EIoULoss', 'BoundedIoULoss'],
)
@pytest.mark.parametrize('dtype, size', [(torch.float32, 1e30), (torch.float32, 1e10), (torch.float64, 1e100)])
@pytest.mark.parametrize('which', ['pred_boxes', 'target boxes'])
def test_boxes_whose_areas_overflow_are_named(which, dtype, size, loss_bbox):
    case = random_case(16, 'none')
    case['target']['mask'][0] = True
    case['input'] = {name: value.to(dtype) for name, value in case['input'].items()}
    case['target']['boxes'] = case['target']['boxes'].to(dtype)
    (case['input']['pred_boxes'] if which == 'pred_boxes' else case['target']['boxes'])[0, 1, 2:] = size
    module = build(loss_bbox=dict(type=loss_bbox))
    with pytest.raises(ValueError, match=f'DetectionLoss: {which} lies in .* beyond .* overflow in {dtype}'):
        module(case['input'], case['target'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('loss_bbox', ['L1Loss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'EIoULoss'])
def test_the_largest_legal_boxes_have_a_finite_loss_and_gradient(loss_bbox, dtype):
    case = random_case(17, 'none')
    limit = box_limit(dtype) * 0.99
    boxes = random_boxes(B, N, generator=torch.Generator().manual_seed(0)).to(dtype) * limit
    pred = dict(pred_logits=case['input']['pred_logits'].to(dtype), pred_boxes=boxes.requires_grad_())
    assigner = dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='FocalLossCost'))
    loss = build(loss_bbox=dict(type=loss_bbox), assigner=assigner)(pred, case['target'])
    assert loss.isfinite() and torch.autograd.grad(loss, boxes)[0].isfinite().all()


BOX_LOSSES = (  # without CIoULoss: its factor alpha is a constant to mmdet's autograd, not to differences
    *('BalancedL1Loss', 'BoundedIoULoss', 'DIoULoss', 'EIoULoss', 'GIoULoss', 'IoULoss', 'L1Loss'),
    *('MSELoss', 'SIoULoss', 'SmoothL1Loss'),
)


@pytest.mark.parametrize('loss_bbox', BOX_LOSSES)
@pytest.mark.slow
def test_gradcheck_of_each_box_loss(loss_bbox):
    case = random_case(18, 'none', batch=1, num_preds=5, num_gts=3)
    case['target']['mask'][:] = True
    plan = torch.rand(1, 5, 4, dtype=torch.float64)
    module = with_plan(build(loss_bbox=dict(type=loss_bbox), min_weight=0), plan)
    boxes = case['input']['pred_boxes'].requires_grad_()

    def loss(pred_boxes):
        return module(dict(pred_logits=case['input']['pred_logits'], pred_boxes=pred_boxes), case['target'])

    assert torch.autograd.gradcheck(loss, [boxes])


# Not CIoULoss, whose alpha mmdet keeps out of the gradient.
BOX_LOSSES_WITH_GRADIENTS = [
    'L1Loss',
    'SmoothL1Loss',
    'BalancedL1Loss',
    'MSELoss',
    'IoULoss',
    'BoundedIoULoss',
    'GIoULoss',
    'DIoULoss',
    'EIoULoss',
    'SIoULoss',
]


@pytest.mark.parametrize('size', [1e-6, 1e-3, 1, 1e4])
@pytest.mark.parametrize('way', ['pair_losses', 'box_losses'])
@pytest.mark.parametrize('loss', BOX_LOSSES_WITH_GRADIENTS)
@pytest.mark.slow
def test_gradcheck_of_box_losses_on_pairs_of_every_size(loss, way, size):
    generator = torch.Generator().manual_seed(1)
    boxes, gts = (random_boxes(n, generator=generator) * size for n in (6, 3))
    weight = torch.rand(1, 6, 4, generator=generator, dtype=torch.float64)
    pairs = expand(weight, 0)
    module = MODELS.build(dict(type=loss))

    def losses(b):
        if way == 'box_losses':
            return box_losses(module, b, gts, pairs)
        return pair_losses(module, b[pairs.rows], gts[pairs.gts], pairs.weight)

    unit = boxes / size
    assert torch.autograd.gradcheck(lambda u: losses(u * size), [unit.requires_grad_()], atol=1e-6)


def test_class_weights_and_losses_that_do_not_fit_are_refused_when_built():
    with pytest.raises(ValueError, match='class_weight of CrossEntropyLoss holds 1 number'):
        build(dict(type='CrossEntropyLoss', class_weight=2.0), 'last')
    for loss_cls in ('GHMC', 'EQLV2Loss'):
        with pytest.raises(
            ValueError, match=f'DetectionLoss: a plan cannot weigh loss_cls={loss_cls}.*Losses that fit'
        ):
            build(loss_cls)
    with pytest.raises(ValueError, match='DetectionLoss: a plan cannot weigh loss_bbox=GHMR.*Losses that fit'):
        build(loss_bbox=[dict(type='L1Loss'), dict(type='GHMR')])
    case = random_case(19, 'none')
    one, each = (dict(type='CrossEntropyLoss', use_sigmoid=True, class_weight=w) for w in (2.0, [2.0] * CLASSES))
    torch.testing.assert_close(build(one)(**arguments(case)), build(each)(**arguments(case)))


def arguments(case: dict) -> dict:
    return dict(input=case['input'], target=case['target'])


def test_the_example_of_the_readme_runs():
    readme = (Path(__file__).resolve().parent.parent / 'README.md').read_text()
    (example,) = (block for block in readme.split('```python\n')[1:] if 'uotod_mmdet.DetectionLoss' in block)
    names = {}
    exec(example.split('```')[0], names)
    assert torch.isfinite(names['loss']) and names['loss'] > 0
    assert names['boxes'].grad.abs().sum() > 0  # something is matched
    assert all(torch.isfinite(names[leaf].grad).all() for leaf in ('logits', 'boxes'))


def test_numbers_and_switches_of_the_config_that_are_none_are_named():
    for error, options, message in (
        (TypeError, dict(loss_weight='1'), "loss_weight must be a number, got '1'"),
        (ValueError, dict(loss_weight=float('nan')), 'loss_weight must be finite'),
        (TypeError, dict(min_weight=[0.1]), r'min_weight must be a number, got \[0.1\]'),
        (TypeError, dict(min_weight='0.1'), "min_weight must be a number, got '0.1'"),
        (ValueError, dict(min_weight=float('nan')), 'min_weight must be finite'),
        (TypeError, dict(use_hard_negative_mining='False'), 'use_hard_negative_mining must be True or False'),
        (TypeError, dict(use_hard_negative_mining=True, neg_to_pos_ratio=[3]), 'neg_to_pos_ratio must be a number'),
        (ValueError, dict(use_hard_negative_mining=True, neg_to_pos_ratio=-1), 'neg_to_pos_ratio'),
    ):
        with pytest.raises(error, match=message):
            build(**options)
    assert build(min_weight=np.float32(0.25), loss_weight=torch.tensor(2)).min_weight == 0.25


def test_a_term_that_is_not_finite_is_explained():
    case = random_case(13, 'last')
    module = build('CrossEntropyLoss', 'last')
    call = dict(input=case['input'], target=case['target'])
    weight = torch.ones(B, N, dtype=torch.float64)
    weight[0, 0] = float('nan')
    for reduction in ('none', 'mean', 'sum'):
        with pytest.raises(ValueError, match='DetectionLoss: loss_cls.* not finite: weight holds 1 NaN .* of 42'):
            module(**call, weight=weight, reduction_override=reduction)
    for value in (float('nan'), torch.tensor(float('nan'))):
        with pytest.raises(ValueError, match='not finite: avg_factor holds 1 NaN'):
            module(**call, avg_factor=value)
    for value in ('3', [3.0]):
        with pytest.raises(TypeError, match='DetectionLoss: avg_factor must be a number'):
            module(**call, avg_factor=value)


def test_an_average_factor_of_zero_is_mmdets():
    case = random_case(14, 'last')
    module = build('CrossEntropyLoss', 'last')
    total = module(case['input'], case['target'], reduction_override='sum')
    found = module(case['input'], case['target'], avg_factor=0)
    torch.testing.assert_close(found, total / torch.finfo(torch.float32).eps)


def test_targets_that_are_none_are_named():
    case = random_case(15, 'none')
    module = build()
    for target in (None, 1.0, 'text', torch.zeros(()), [1, 2, 3], InstanceData(), np.zeros(3)):
        with pytest.raises(TypeError, match='target must be a dict of the tensors labels, boxes and mask, or a list'):
            module(case['input'], target)
    for gt in (
        InstanceData(labels=torch.tensor([1])),
        InstanceData(bboxes=torch.rand(1, 4)),
        InstanceData(labels=torch.ones(1, 1).long(), bboxes=torch.rand(1, 4)),
    ):
        with pytest.raises(ValueError, match=r'target 0 needs labels \(M,\) and bboxes \(M, 4\)'):
            module(case['input'], [gt] * B)
    with pytest.raises(ValueError, match=r'bboxes of target 0 must have shape \(1, 4\); got \(1, 5\)'):
        module(case['input'], [InstanceData(labels=torch.tensor([1]), bboxes=torch.rand(1, 5))] * B)


@pytest.mark.parametrize('options', [dict(use_hard_negative_mining=True, neg_to_pos_ratio=3), {}], ids=['mining', ''])
@pytest.mark.parametrize('loss_cls, position', [('CrossEntropyLoss', 'last'), ('FocalLoss', 'none')])
@pytest.mark.parametrize('batch, preds', [(0, N), (B, 0), (0, 0)])
def test_no_images_and_no_predictions_give_a_zero_that_can_be_trained_on(batch, preds, loss_cls, position, options):
    module = build(loss_cls, position, **options)
    case = random_case(16, position, batch=batch, num_preds=preds) if batch else None
    logits = torch.zeros(batch, preds, CLASSES + (position != 'none')).requires_grad_()
    input = dict(pred_logits=logits, pred_boxes=torch.zeros(batch, preds, 4))
    empty = dict(labels=torch.zeros(0, M, dtype=torch.long), boxes=torch.zeros(0, M, 4))
    for target in (case['target'],) if case else (empty, []):
        loss = module(input, target)
        assert loss == 0
        loss.backward()


def test_plans_and_weights_that_are_none_are_named():
    for plan, error in ((torch.rand(2, 3), ValueError), (torch.rand(1, 2, 3, 4), ValueError), ([[1.0]], TypeError)):
        with pytest.raises(error, match=r'plan must .*\(B, N, M \+ 1\)'):
            expand(plan)
    with pytest.raises(ValueError, match='plan must have shape'):
        expand(torch.rand(2, 3, 0))
    for dtype in (torch.float32, torch.float64):
        plan = torch.rand(2, 5, 3, dtype=dtype)
        for min_weight in ('0.1', [0.1], np.array([0.1])):
            with pytest.raises(TypeError, match='min_weight must be a number'):
                expand(plan, min_weight)
        expected = expand(plan, 0.25)
        for min_weight in (np.float64(0.25), np.array(0.25), torch.tensor(0.25)):
            assert torch.equal(expand(plan, min_weight).weight, expected.weight)
