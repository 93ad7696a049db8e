"""The losses of pairs: their formulas entry by entry, under hard and soft plans, in our heads and mmdet's."""

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from test_losses import value_and_gradient
from test_plan_heads import (
    DENSE,
    assert_same_losses,
    dense_outputs,
    detr_outputs,
    epoch,  # noqa: F401  (a fixture of every test here, too)
    ground_truths,
    head_config,
    soft,
    soft_losses,
)

import uotod_mmdet.losses.pair_quality_loss as family
from uotod_mmdet.losses import IoUAwareBCELoss, MatchabilityAwareLoss, PositionSupervisedLoss
from uotod_mmdet.losses.iou_aware_bce_loss import mass_rank
from uotod_mmdet.plan import Reading, classification_losses, expand

N, C = 23, 6
LOSSES = [
    MatchabilityAwareLoss(),
    MatchabilityAwareLoss(gamma=2.0, loss_weight=0.7),
    IoUAwareBCELoss(),
    IoUAwareBCELoss(alpha=0.5, gamma=1.5, loss_weight=1.3),
    PositionSupervisedLoss(),
    PositionSupervisedLoss(beta=1.0, gamma=1.5, alpha=0.4, loss_weight=6.0),
]
EACH = pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: f'{type(loss).__name__} {loss.gamma}')
NAMES = [type(loss).__name__ for loss in LOSSES[::2]]


@pytest.fixture(params=['blocks', 'plain'])
def path(request, monkeypatch):
    """Both ways to compute: in blocks, as on a CPU, and plainly, as on a GPU and when traced."""
    if request.param == 'plain':
        monkeypatch.setattr(family, 'pays_in_blocks', lambda logits: False)


def cross_entropy(x: float, target: float) -> float:
    """BCE of a logit."""
    return max(x, 0) - x * target + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def target_of(loss, x: float, quality: float) -> float:
    """Target of a pair in a plan of its own."""
    if isinstance(loss, MatchabilityAwareLoss):
        return quality**loss.gamma
    if isinstance(loss, IoUAwareBCELoss):
        return max(sigmoid(x) ** loss.alpha * quality ** (1 - loss.alpha), 0.01)
    return quality**loss.beta


def positive(loss, x: float, target: float) -> float:
    if isinstance(loss, PositionSupervisedLoss):
        return loss.alpha * abs(target - sigmoid(x)) ** loss.gamma * cross_entropy(x, target)
    return cross_entropy(x, target)


def negative(loss, x: float) -> float:
    factor = 1 - loss.alpha if isinstance(loss, PositionSupervisedLoss) else 1
    return factor * sigmoid(x) ** loss.gamma * cross_entropy(x, 0)


def inputs(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(N, C, generator=generator, dtype=torch.float64) * 3
    label = torch.randint(0, C + 1, (N,), generator=generator)
    score = torch.rand(N, generator=generator, dtype=torch.float64)
    score[::5] = 0
    return pred.to(dtype), label, score.to(dtype)


@EACH
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@pytest.mark.parametrize('form', ['labels', 'dense'])
def test_each_row_is_the_sum_of_its_entries_by_the_formula(loss, form, dtype, path):
    pred, label, score = inputs(dtype=dtype)
    rows, dense = [], torch.zeros_like(pred)
    for i in range(N):
        total = 0.0
        for c in range(C):
            x, quality = pred[i, c].item(), score[i].item()
            # a dense target of 0 is no pair, a pair of quality 0 is one
            if c == label[i] and (form == 'labels' or quality > 0):
                dense[i, c] = quality
                total += positive(loss, x, target_of(loss, x, quality))
            else:
                total += negative(loss, x)
        rows.append(loss.loss_weight * total)
    expected = torch.tensor(rows, dtype=dtype)
    weight = torch.rand(N, generator=torch.Generator().manual_seed(1)).to(dtype)
    target = dense if form == 'dense' else (label, score)
    close = dict(rtol=1e-9, atol=1e-12) if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(pred, target, reduction_override='none'), expected, **close)
    torch.testing.assert_close(loss(pred, target, weight, reduction_override='none'), weight * expected, **close)
    torch.testing.assert_close(loss(pred, target), expected.mean(), **close)
    averaged = loss(pred, target, weight, avg_factor=3.7)  # mmdet adds an epsilon of float32 to the factor
    torch.testing.assert_close(averaged, (weight * expected).sum() / 3.7, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(pred, target, weight, reduction_override='sum'), (weight * expected).sum(), **close)
    assert loss(pred[:0], (label[:0], score[:0])) == 0


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize(
    'loss', [loss for loss in LOSSES if loss is not LOSSES[3]], ids=lambda loss: type(loss).__name__
)
def test_gradients_are_those_of_difference_quotients(loss, reduction, path):
    if isinstance(loss, IoUAwareBCELoss):
        loss = IoUAwareBCELoss(alpha=0.0)  # else the target follows the score, without gradient
    pred, label, score = inputs(1)
    weight = torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def of(pred, weight, score):
        return loss(pred, (label, score), weight, reduction_override=reduction)

    learnt = pred.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda pred, weight: of(pred, weight, score), learnt)
    if not isinstance(loss, IoUAwareBCELoss):  # whose target has no gradient
        inner = (0.1 + 0.8 * score).requires_grad_()
        assert torch.autograd.gradcheck(lambda score: of(pred, weight, score), [inner])


def test_the_target_of_iou_aware_bce_is_fixed(path):
    pred, label, score = inputs(2)
    loss = IoUAwareBCELoss()
    _, found = value_and_gradient(loss, pred, (label, score))
    target = torch.zeros_like(pred)
    for i in range(N):
        for c in range(C):
            p = sigmoid(pred[i, c].item())
            if c == label[i]:  # d/dx BCE(p, t) = p - t
                target[i, c] = p - target_of(loss, pred[i, c].item(), score[i].item())
            else:
                s = cross_entropy(pred[i, c].item(), 0)
                target[i, c] = p**2 * (p + 2 * s * (1 - p))
    torch.testing.assert_close(found, target * 0.5 / N)  # value_and_gradient weighs one number by 0.5


@EACH
def test_probabilities_have_the_loss_of_their_logits(loss, path):
    pred, label, score = inputs(3)
    activated = copy.deepcopy(loss)
    activated.activated = True
    found, expected = (
        value_and_gradient(each, x, (label, score)) for each, x in ((activated, pred.sigmoid()), (loss, pred))
    )
    torch.testing.assert_close(found[0], expected[0])
    prob = pred.sigmoid()
    torch.testing.assert_close(found[1] * prob * (1 - prob), expected[1])
    with pytest.raises(ValueError, match=r'activated=True takes probabilities in \[0, 1\]; pred lies in'):
        activated(pred, (label, score))


# Under a plan


def plan_and_pairs(kind, seed=0):
    """A plan (2, 7, 4) over three ground truths, two of one class, its pairs, labels and qualities."""
    generator = torch.Generator().manual_seed(seed)
    plan = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64).mul(3).softmax(2)
    plan[1, 2] = 0  # ignored
    if kind == 'hard':
        plan = torch.nn.functional.one_hot(plan.argmax(2), 4).double() * (plan.sum(2, keepdim=True) > 0)
    pairs = expand(plan, min_weight=0.0)
    labels = torch.tensor([[1, 3, 1], [0, 2, 2]]).flatten()[pairs.gts]
    quality = torch.rand(len(pairs.rows), generator=generator, dtype=torch.float64)
    scores = torch.randn(14, 5, generator=generator, dtype=torch.float64) * 2
    return plan, pairs, labels, quality, scores


def targets_of_plan(loss, pairs, labels, quality, scores):
    targets = [target_of(loss, scores[i, c].item(), q.item()) for i, c, q in zip(pairs.rows, labels, quality)]
    if isinstance(loss, IoUAwareBCELoss):
        ranks = []
        for k in range(len(targets)):
            others = [
                pairs.weight[n].item()
                for n in range(len(targets))
                if pairs.gts[n] == pairs.gts[k] and targets[n] > targets[k]
            ]
            ranks.append(sum(others))
        return [t * math.exp(-rank / loss.tau) for t, rank in zip(targets, ranks)]
    if isinstance(loss, PositionSupervisedLoss):
        scaled = []
        for k, t in enumerate(targets):
            of_image = [n for n in range(len(targets)) if pairs.images[n] == pairs.images[k]]
            heaviest = max(pairs.weight[n].item() for n in of_image)
            scaled.append(min(t / max(pairs.weight[n].item() / heaviest * targets[n] for n in of_image), 1))
        return scaled
    return targets


@EACH
@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_a_plan_weighs_each_pair_and_the_rest_of_a_prediction(loss, kind, path):
    plan, pairs, labels, quality, scores = plan_and_pairs(kind)
    targets = targets_of_plan(loss, pairs, labels, quality, scores)
    mass = plan.sum(2).flatten()
    expected = []
    for i in range(14):
        total = 0.0
        for c in range(5):
            x, rest = scores[i, c].item(), mass[i].item()
            for k in range(len(labels)):
                if pairs.rows[k] == i and labels[k] == c:
                    total += pairs.weight[k].item() * positive(loss, x, targets[k])
                    rest -= pairs.weight[k].item()
            total += rest * negative(loss, x)
        expected.append(loss.loss_weight * total)
    found = classification_losses(loss, scores, labels, 5, pairs, lambda: quality)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


class OfPairs(MatchabilityAwareLoss):
    """A loss of others that is called with labels and qualities."""

    plan_reading = Reading(target='pair quality')


@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_a_loss_that_is_called_with_pairs_has_the_same_value(kind):
    _, pairs, labels, quality, scores = plan_and_pairs(kind)
    found, expected = (
        classification_losses(loss, scores, labels, 5, pairs, lambda: quality)
        for loss in (OfPairs(), MatchabilityAwareLoss())
    )
    torch.testing.assert_close(found, expected)


def test_ranks_of_a_plan_of_ones_are_0_1_2():
    plan = torch.zeros(1, 6, 3)
    plan[0, [0, 1, 2, 4], 0] = 1
    plan[0, 3, 1] = plan[0, 5, 2] = 1
    pairs = expand(plan)
    assert pairs.rows.tolist() == [0, 1, 2, 3, 4]
    assert mass_rank(torch.tensor([0.3, 0.9, 0.3, 0.1, 0.5]), pairs).tolist() == [2, 0, 3, 0, 1]


def test_learning_a_plan_reaches_its_weights(path):
    plan, _, labels, quality, scores = plan_and_pairs('soft')
    plan = plan.clone()
    plan[1, 2] = 0.25  # a row of no mass has no neighbours in both directions

    def total(plan):
        pairs = expand(plan, min_weight=0.0)
        every = torch.full((len(pairs.rows),), 0.4, dtype=torch.float64)
        of_pairs = torch.tensor([[1, 3, 1], [0, 2, 2]]).flatten()[pairs.gts]
        return classification_losses(MatchabilityAwareLoss(), scores, of_pairs, 5, pairs, lambda: every).sum()

    assert torch.autograd.gradcheck(total, [plan.requires_grad_()])


# In heads


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('head', ['GFLHead', 'RTMDetHead', 'DETRHead', 'DeformableDETRHead', 'DINOHead'])
def test_a_head_with_a_hard_plan_is_mmdets(head, name):
    options = dict(type=f'uotod_mmdet.{name}', use_sigmoid=True, loss_weight=1.5)
    if name == 'PositionSupervisedLoss':
        options['rescale'] = False  # mmdet's head hands the loss no images
    config = head_config(head, loss_cls=options)
    if name == 'IoUAwareBCELoss' and head in DENSE:
        pytest.skip('several predictions of a ground truth have ranks in our head only')
    stock, ours = (MODELS.build(copy.deepcopy(c)) for c in (config, {**config, 'type': f'uotod_mmdet.{head}'}))
    gts, ignored, metas = ground_truths(3, with_ignored=False)
    if head in DENSE:
        outputs = dense_outputs(stock, 3)
        losses = [h.loss_by_feat(*outputs, gts, metas, ignored) for h in (stock, ours)]
        assert_same_losses(*losses, [level for maps in outputs for level in maps])
        return
    scores, boxes = detr_outputs(stock.cls_out_channels, 5)
    args, extra = [scores, boxes.sigmoid()], {}
    if head != 'DETRHead':
        args += [args[0][0], args[1][0]]
    if head == 'DINOHead':
        extra = dict(dn_meta=dict(num_denoising_queries=12, num_denoising_groups=1))
    losses = [h.loss_by_feat(*args, gts, metas, **extra) for h in (stock, ours)]
    assert_same_losses(*losses, [scores, boxes])


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'head', ['ATSSHead', 'GFLHead', 'RetinaHead', 'VFNetHead', 'RTMDetHead', 'TOODHead', 'DINOHead']
)
def test_a_head_takes_each_loss_on_a_soft_plan(head, name):
    options = dict(type=f'uotod_mmdet.{name}', use_sigmoid=True, loss_weight=1.5)
    if head == 'TOODHead':
        with pytest.raises(ValueError, match=f'TOODHead predicts probabilities, but loss_cls={name} takes logits'):
            soft(head, loss_cls=options)
        options['activated'] = True
    model = soft(head, loss_cls=options)
    losses = soft_losses(model)
    assert all(torch.isfinite(value).all() for value in losses.values() if isinstance(value, torch.Tensor))
    model.loss_cls.loss_weight = 3.0
    torch.testing.assert_close(soft_losses(model)['loss_cls'], 2 * losses['loss_cls'])


# Bad input


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'target, message',
    [
        ((torch.tensor([0, 6, 2]), torch.tensor([0.5, 0.0, 1.5])), r'score must lie in \[0, 1\].*0\.5 to 1\.5'),
        ((torch.tensor([0, 6, 2]), torch.tensor([-0.5, 0.0, 0.5])), r'score must lie in \[0, 1\].*-0\.5'),
        ((torch.tensor([0, 6, 2]), torch.tensor([float('nan'), 0.0, 0.5])), r'score must lie in \[0, 1\].*NaN'),
        (torch.full((3, C), 1.2), r'target must lie in \[0, 1\].*1\.2'),
        (torch.tensor([0, 6, 2]), r'target must have shape \(3, 6\); got \(3,\).*Labels alone \(torch.int64\) hold no'),
        ((torch.tensor([0, 6, 2]), torch.tensor([0, 6, 2])), r'score must lie in \[0, 1\].*0 to 2'),
        ((torch.tensor([0, 7, 2]), torch.rand(3)), r'label must lie in \[0, 6\].*num_classes'),
    ],
    ids=['above', 'below', 'nan', 'dense', 'labels', 'labels for scores', 'class'],
)
def test_targets_that_are_no_qualities_are_refused(name, target, message, path):
    loss = MODELS.build(dict(type=f'uotod_mmdet.{name}'))
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        loss(torch.zeros(3, C), target)


@pytest.mark.parametrize(
    'config, error, message',
    [
        (dict(type='MatchabilityAwareLoss', gamma=-1), ValueError, 'MatchabilityAwareLoss: gamma must be >= 0'),
        (dict(type='IoUAwareBCELoss', gamma=-0.5), ValueError, 'IoUAwareBCELoss: gamma must be >= 0'),
        (dict(type='IoUAwareBCELoss', alpha=1.5), ValueError, r'IoUAwareBCELoss: alpha must be in \[0, 1\]'),
        (dict(type='IoUAwareBCELoss', tau=0), ValueError, 'IoUAwareBCELoss: tau must be positive'),
        (dict(type='PositionSupervisedLoss', gamma=-2), ValueError, 'PositionSupervisedLoss: gamma must be >= 0'),
        (
            dict(type='PositionSupervisedLoss', alpha=1),
            ValueError,
            r'PositionSupervisedLoss: alpha must be in \(0, 1\)',
        ),
        (dict(type='PositionSupervisedLoss', rescale='no'), TypeError, 'PositionSupervisedLoss: rescale must be True'),
        (dict(type='MatchabilityAwareLoss', use_sigmoid=False), ValueError, 'use_sigmoid must be True'),
        (dict(type='MatchabilityAwareLoss', gamma='2'), TypeError, 'gamma must be a number'),
    ],
    ids=str,
)
def test_arguments_that_are_none_of_the_formula_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        MODELS.build({**config, 'type': f'uotod_mmdet.{config["type"]}'})
