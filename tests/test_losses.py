"""The three losses against mmdet's, against their formulas in float64, and under bad input."""

import math
import sys

import mmdet.models.losses as theirs
import mmdet.registry
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import uotod_mmdet.losses as ours
from uotod_mmdet.losses.checks import check_finite

N, C, REG_MAX = 23, 6, 8
NAMES = ['QualityFocalLoss', 'DistributionFocalLoss', 'VarifocalLoss']


def quality_input(form, activated=False, dtype=torch.float64, rows=N, seed=0):
    """Logits (probabilities if activated) and targets, some rows background, some scores 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(rows, C, generator=generator, dtype=torch.float64) * 3
    label = torch.randint(0, C + 1, (rows,), generator=generator)
    score = torch.rand(rows, generator=generator, dtype=torch.float64)
    score[::5] = 0
    score[1::7] = 1
    pred, score = (pred.sigmoid() if activated else pred).to(dtype), score.to(dtype)
    if form == 'labels':
        return pred, (label, score)
    target = torch.zeros(rows, C, dtype=dtype)
    foreground = label < C
    target[foreground, label[foreground]] = score[foreground]
    if form == 'soft':
        target = torch.where(torch.rand(rows, C, generator=generator) < 0.5, target, torch.rand_like(target))
    return pred, target


def distance_input(dtype=torch.float64, rows=N, seed=0):
    """Logits and distances below reg_max (mmdet fails on reg_max itself), some whole."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(rows, REG_MAX + 1, generator=generator, dtype=torch.float64) * 3
    target = torch.rand(rows, generator=generator, dtype=torch.float64) * (REG_MAX - 0.01)
    target[::4] = target[::4].floor()
    return pred.to(dtype), target.to(dtype)


def loss_input(name, dtype=torch.float64, rows=N):
    if name == 'DistributionFocalLoss':
        return distance_input(dtype, rows)
    return quality_input('labels' if name == 'QualityFocalLoss' else 'soft', dtype=dtype, rows=rows)


def weight_of(kind, shape, dtype):
    """A weight that broadcasts to shape, half of it zero."""
    if kind is None:
        return None
    generator = torch.Generator().manual_seed(1)
    shape = {'full': shape, 'one': (1,), 'column': (*shape[:-1], 1), 'row': shape[-1:]}[kind]
    weight = torch.rand(shape, generator=generator).to(dtype)
    return weight if kind == 'one' else weight * (torch.rand(shape, generator=generator) < 0.5)


def value_and_gradient(loss, pred, *args, **kwargs):
    """The loss, and the gradient of a weighted sum of its entries."""
    pred = pred.clone().requires_grad_()
    value = loss(pred, *args, **kwargs)
    torch.sum(value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)).backward()
    return value.detach(), pred.grad


def assert_same(actual, expected):
    """Equal to 1e-6 relative, entry by entry in float64; in float32 entries may cancel, so to the largest entry."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if not expected.numel():
        return
    floor = 1e-12 if expected.dtype == torch.float64 else 1e-6
    # Below the smallest normal number there are no six digits to compare.
    atol = max(floor * float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=atol)


def assert_equals_mmdet(name, config, pred, target, **kwargs):
    mine = getattr(ours, name)(**config)
    stock = getattr(theirs, name)(**config)
    for actual, expected in zip(
        value_and_gradient(mine, pred, target, **kwargs), value_and_gradient(stock, pred, target, **kwargs)
    ):
        assert_same(actual, expected)


DTYPES = pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
REDUCTIONS = pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
AVERAGES = pytest.mark.parametrize(
    ('reduction', 'avg_factor'),
    [('sum', None)] + [(r, a) for r in ('none', 'mean') for a in (None, 3.7, 0.0, torch.tensor(2.5))],
    ids=str,
)


BOTH_DTYPES = (torch.float64, torch.float32)


@AVERAGES
@pytest.mark.parametrize('weighting', [None, 'full', 'one'])
@pytest.mark.parametrize('activated', [False, True], ids=['logits', 'activated'])
@pytest.mark.parametrize('form', ['labels', 'dense', 'soft'])
def test_quality_focal_loss_equals_mmdet(form, activated, weighting, reduction, avg_factor):
    config = dict(activated=activated, loss_weight=1.3, reduction=reduction)
    for dtype in BOTH_DTYPES:
        pred, target = quality_input(form, activated, dtype)
        weight = weight_of(weighting, (N,), dtype)
        assert_equals_mmdet('QualityFocalLoss', config, pred, target, weight=weight, avg_factor=avg_factor)


@AVERAGES
@pytest.mark.parametrize('weighting', [None, 'full', 'one', 'column', 'row'])
@pytest.mark.parametrize('iou_weighted', [True, False])
@pytest.mark.parametrize('form', ['dense', 'soft'])
def test_varifocal_loss_equals_mmdet(form, iou_weighted, weighting, reduction, avg_factor):
    config = dict(iou_weighted=iou_weighted, loss_weight=0.7, reduction=reduction)
    for dtype in BOTH_DTYPES:
        pred, target = quality_input(form, dtype=dtype)
        weight = weight_of(weighting, (N, C), dtype)
        assert_equals_mmdet('VarifocalLoss', config, pred, target, weight=weight, avg_factor=avg_factor)


@AVERAGES
@pytest.mark.parametrize('weighting', [None, 'full', 'one'])
def test_distribution_focal_loss_equals_mmdet(weighting, reduction, avg_factor):
    config = dict(loss_weight=0.25, reduction=reduction)
    for dtype in BOTH_DTYPES:
        pred, target = distance_input(dtype)
        weight = weight_of(weighting, (N,), dtype)
        assert_equals_mmdet('DistributionFocalLoss', config, pred, target, weight=weight, avg_factor=avg_factor)


@pytest.mark.parametrize(
    ('name', 'config'),
    [('QualityFocalLoss', dict(beta=beta)) for beta in (0.0, 1.0, 1.5, 2.5)]
    + [('VarifocalLoss', dict(gamma=1.5, alpha=0.25)), ('VarifocalLoss', dict(alpha=0.0))],
    ids=str,
)
def test_other_exponents_and_factors_equal_mmdet(name, config):
    assert_equals_mmdet(name, config, *loss_input(name))


@pytest.mark.parametrize('name', NAMES)
@REDUCTIONS
def test_reduction_override_goes_before_the_constructors(name, reduction):
    assert_equals_mmdet(name, dict(reduction='none'), *loss_input(name), reduction_override=reduction)
    assert_equals_mmdet(name, dict(reduction='sum'), *loss_input(name), reduction_override=reduction)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    scale=st.sampled_from([0.1, 5.0, 60.0, 2000.0]),
    seed=st.integers(0, 2**16),
    label_dtype=st.sampled_from([torch.int64, torch.int32, torch.float32]),
)
def test_any_logits_and_labels_give_what_mmdet_gives(rows, scale, seed, label_dtype):
    pred, (label, score) = quality_input('labels', rows=rows, seed=seed)
    assert_equals_mmdet('QualityFocalLoss', {}, pred * scale, (label.to(label_dtype), score))
    pred, target = quality_input('soft', rows=rows, seed=seed)
    assert_equals_mmdet('QualityFocalLoss', {}, pred * scale, target)
    assert_equals_mmdet('VarifocalLoss', {}, pred * scale, target)
    pred, target = distance_input(rows=rows, seed=seed)
    assert_equals_mmdet('DistributionFocalLoss', {}, pred * scale, target)


def test_quality_focal_loss_follows_its_formula():
    pred, (label, score) = quality_input('labels')
    expected = np.zeros(N)
    for i in range(N):
        for c in range(C):
            p = 1 / (1 + math.exp(-pred[i, c].item()))
            y = score[i].item() if label[i] == c else 0.0
            expected[i] += -(abs(y - p) ** 2) * ((1 - y) * math.log(1 - p) + y * math.log(p))
    actual = ours.quality_focal_loss(pred, (label, score), reduction='none')
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


def test_varifocal_loss_follows_its_formula():
    pred, target = quality_input('dense')
    p, q = 1 / (1 + np.exp(-pred.numpy())), target.numpy()
    expected = np.where(q > 0, -q * (q * np.log(p) + (1 - q) * np.log(1 - p)), -0.75 * np.abs(p) ** 2 * np.log(1 - p))
    actual = ours.varifocal_loss(pred, target, reduction='none')
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


def test_distribution_focal_loss_follows_its_formula():
    pred, target = distance_input()
    expected = np.zeros(N)
    for i, (row, y) in enumerate(zip(pred.numpy(), target.numpy())):
        s = np.exp(row) / np.exp(row).sum()
        left = int(y)
        expected[i] = -((left + 1 - y) * math.log(s[left]) + (y - left) * math.log(s[left + 1]))
    actual = ours.distribution_focal_loss(pred, target, reduction='none')
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize('activated', [False, True], ids=['logits', 'activated'])
@pytest.mark.parametrize('form', ['labels', 'soft'])
@pytest.mark.parametrize('reduction', ['none', 'mean'])
def test_quality_focal_loss_passes_gradcheck(form, activated, reduction):
    pred, target = quality_input(form, activated, rows=5)
    assert torch.autograd.gradcheck(
        lambda x: ours.quality_focal_loss(x, target, activated=activated, reduction=reduction), pred.requires_grad_()
    )


@pytest.mark.parametrize('name', ['DistributionFocalLoss', 'VarifocalLoss'])
@pytest.mark.parametrize('reduction', ['none', 'mean'])
def test_other_losses_pass_gradcheck(name, reduction):
    pred, target = loss_input(name, rows=5)
    loss = getattr(ours, name)(reduction=reduction)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), pred.requires_grad_())


@DTYPES
@pytest.mark.parametrize('form', ['labels', 'dense'])
def test_score_exactly_at_the_prediction_gives_finite_gradients(form, dtype):
    pred = torch.linspace(-4, 4, C, dtype=dtype).repeat(2, 1)
    score = pred.sigmoid()
    target = (torch.tensor([2, 4]), score[[0, 1], [2, 4]]) if form == 'labels' else score
    value, gradient = value_and_gradient(ours.QualityFocalLoss(reduction='none'), pred, target)
    assert gradient.isfinite().all()
    if form == 'labels':
        assert gradient[0, 2] == 0 and gradient[1, 4] == 0
    else:
        assert (value == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize('name', NAMES)
def test_rows_of_weight_zero_get_a_gradient_of_exactly_zero(name):
    pred, target = loss_input(name)
    weight = torch.ones(N) if name != 'VarifocalLoss' else torch.ones(N, C)
    weight[::2] = 0
    _, gradient = value_and_gradient(getattr(ours, name)(), pred * 20, target, weight, avg_factor=4.0)
    assert (gradient[::2] == 0).all()
    assert gradient[1::2].abs().sum() > 0


def test_scores_of_background_rows_are_never_read():
    pred, (label, score) = quality_input('labels')
    noise = torch.where(label == C, torch.tensor(math.nan, dtype=score.dtype), score)
    assert (label == C).any()
    for expected, actual in zip(
        value_and_gradient(ours.QualityFocalLoss(), pred, (label, score)),
        value_and_gradient(ours.QualityFocalLoss(), pred, (label, noise)),
    ):
        assert torch.equal(actual, expected)


def test_distance_of_reg_max_is_cross_entropy_on_the_last_bin():
    pred, _ = distance_input()
    target = torch.full((N,), float(REG_MAX), dtype=pred.dtype)
    value, gradient = value_and_gradient(ours.DistributionFocalLoss(reduction='none'), pred, target)
    expected, expected_gradient = value_and_gradient(
        lambda x: torch.nn.functional.cross_entropy(x, torch.full((N,), REG_MAX), reduction='none'), pred
    )
    assert_same(value, expected)
    assert_same(gradient, expected_gradient)
    with pytest.raises(IndexError):  # the reason why ours exists
        theirs.DistributionFocalLoss()(pred, target)


def test_distance_is_continuous_at_reg_max():
    pred, _ = distance_input(rows=1)
    at, below = (
        ours.distribution_focal_loss(pred, torch.tensor([y], dtype=pred.dtype)) for y in (REG_MAX, REG_MAX - 1e-9)
    )
    assert abs(at - below) < 1e-7


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kwargs', [{}, dict(avg_factor=2.0), dict(reduction_override='sum')], ids=str)
def test_no_rows_give_a_zero_that_can_be_trained_on(name, kwargs):
    pred, target = loss_input(name, rows=0)
    value, gradient = value_and_gradient(getattr(ours, name)(), pred, target, **kwargs)
    assert value.shape == () and value == 0
    assert gradient.shape == pred.shape


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('autocast', [False, True], ids=['plain', 'autocast'])
def test_half_precision_is_computed_in_float32(name, half, autocast):
    pred, target = loss_input(name, torch.float32)
    pred = pred.to(half)
    loss = getattr(ours, name)(reduction='none')
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(loss, pred, target)
    expected, expected_gradient = value_and_gradient(loss, pred.float(), target)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient.to(half))


@pytest.mark.parametrize('name', NAMES)
def test_half_targets_are_taken_as_well(name):
    pred, target = loss_input(name, torch.bfloat16)
    wide = (target[0], target[1].float()) if isinstance(target, tuple) else target.float()
    loss = getattr(ours, name)()
    assert torch.equal(loss(pred, target), loss(pred, wide))


@pytest.mark.parametrize('form', ['labels', 'soft'])
def test_autocast_changes_nothing_for_probabilities(form):
    pred, target = quality_input(form, activated=True, dtype=torch.float32)
    loss = ours.QualityFocalLoss(activated=True)
    expected = loss(pred, target)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(loss(pred, target), expected)


def test_masked_bins_are_legal_where_the_target_is_elsewhere():
    pred, _ = distance_input(rows=2)
    target = torch.tensor([1.5, 2.5], dtype=pred.dtype)
    pred[:, REG_MAX] = -math.inf
    assert_same(ours.distribution_focal_loss(pred, target), ours.distribution_focal_loss(pred[:, :REG_MAX], target))


@pytest.mark.parametrize('name', NAMES)
def test_infinite_logits_are_counted_where_the_loss_is_not_finite(name):
    pred, target = loss_input(name)
    pred[:3, 2] = math.inf
    with pytest.raises(
        ValueError, match=f'{name}: the loss is not finite.*pred holds 3 infinite of {pred.numel()} entries'
    ):
        getattr(ours, name)()(pred, target)


class CountReads(TorchDispatchMode):
    """Counts the values that Python asks of tensors; on a GPU each makes the host wait."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('gamma', [2.0, 1.5])
@pytest.mark.parametrize('form', ['labels', 'dense', 'soft'])
@pytest.mark.parametrize('name', ['QualityFocalLoss', 'VarifocalLoss'])
@pytest.mark.parametrize('path', ['blocks', 'plain'])
def test_blocks_and_the_plain_path_equal_mmdet(path, name, form, gamma, monkeypatch, request):
    if path == 'plain':
        request.getfixturevalue('as_on_a_gpu')
    monkeypatch.setattr(sys.modules['uotod_mmdet.ops.focal_rows'], 'BLOCK', 5 * C)
    if name == 'VarifocalLoss' and form == 'labels':
        pytest.skip('VarifocalLoss takes soft targets only')
    pred, target = quality_input(form, rows=53)
    config = dict(beta=gamma) if name == 'QualityFocalLoss' else dict(gamma=gamma)
    weight = torch.rand(53, dtype=torch.float64)
    weight = weight if name == 'QualityFocalLoss' else weight[:, None]
    for kwargs in (dict(avg_factor=3.0), dict(weight=weight), dict(weight=weight, reduction_override='sum')):
        assert_equals_mmdet(name, config, pred, target, **kwargs)
    # Not contiguous, and every second column unused: the gradient must find its way back.
    wide = torch.randn(2 * C, 53, dtype=torch.float64)
    leaves = [wide.clone().requires_grad_() for _ in range(2)]
    for leaf, module in zip(leaves, (ours, theirs)):
        loss = getattr(module, name)(**config)(leaf.t()[:, ::2], target, avg_factor=3.0)
        (2 * loss).backward()
    assert_same(leaves[0].grad, leaves[1].grad)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The plain path, which losses take on a GPU."""
    for module in ('quality_focal_loss', 'varifocal_loss'):
        monkeypatch.setattr(sys.modules[f'uotod_mmdet.losses.{module}'], 'pays_in_blocks', lambda x: False)


@pytest.mark.parametrize('name', NAMES)
def test_forward_waits_for_the_device_once(name, as_on_a_gpu):
    pred, target = loss_input(name)
    with CountReads() as counter:
        getattr(ours, name)()(pred, target, torch.ones(1), avg_factor=torch.tensor(2.0))
    assert counter.reads == 1


@pytest.mark.parametrize('form', ['labels', 'soft'])
def test_forward_on_probabilities_waits_for_the_device_once(form):
    with CountReads() as counter:
        ours.QualityFocalLoss(activated=True)(*quality_input(form, activated=True))
    assert counter.reads == 1


@pytest.mark.parametrize('name', NAMES)
def test_config_with_prefix_builds_a_subclass_of_mmdets(name):
    built = mmdet.registry.MODELS.build(dict(type=f'uotod_mmdet.{name}', loss_weight=0.5))
    assert type(built) is getattr(ours, name)
    assert isinstance(built, getattr(theirs, name))
    assert built.loss_weight == 0.5
    assert vars(built).keys() == vars(getattr(theirs, name)()).keys()


def test_misspelt_argument_is_named_with_the_right_one():
    with pytest.raises(TypeError, match="'betta'.*did you mean 'beta'"):
        mmdet.registry.MODELS.build(dict(type='uotod_mmdet.QualityFocalLoss', betta=2))


def test_misspelt_type_is_answered_with_the_right_one():
    with pytest.raises(KeyError, match='QualityFocalLos.*did you mean .QualityFocalLoss'):
        mmdet.registry.MODELS.build(dict(type='uotod_mmdet.QualityFocalLos'))


@pytest.mark.parametrize('name', ['QualityFocalLoss', 'VarifocalLoss'])
def test_softmax_is_refused(name):
    with pytest.raises(AssertionError, match='Only sigmoid'):
        getattr(ours, name)(use_sigmoid=False)


@pytest.mark.parametrize('name', NAMES)
def test_avg_factor_with_sum_names_the_way_out(name):
    with pytest.raises(ValueError, match="mmdet's heads always pass avg_factor.*set reduction='mean'.*10919"):
        getattr(ours, name)(reduction='sum')(*loss_input(name), avg_factor=1.0)


@pytest.mark.parametrize('name', NAMES)
def test_unknown_reduction_is_answered_with_the_known(name):
    for loss, kwargs in (
        (getattr(ours, name)(reduction='average'), {}),
        (getattr(ours, name)(), dict(reduction_override='average')),
    ):
        with pytest.raises(ValueError, match=f"{name}.*none, mean, sum; got 'average'"):
            loss(*loss_input(name), **kwargs)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kwargs', [{}, dict(reduction_override='none')], ids=str)
def test_nan_in_predictions_is_counted_and_explained(name, kwargs):
    pred, target = loss_input(name)
    pred[1, 2] = pred[5, 0] = math.nan
    with pytest.raises(
        ValueError, match=rf'{name}: pred holds NaN in 2 of {pred.numel()} .*learning rate.*clip_grad.*fp16'
    ):
        getattr(ours, name)()(pred, target, **kwargs)


def test_nan_in_probabilities_is_counted_and_explained():
    pred, target = quality_input('labels', activated=True)
    pred[3] = math.nan
    with pytest.raises(ValueError, match=rf'pred holds NaN in {C} of {N * C} '):
        ours.QualityFocalLoss(activated=True)(pred, target)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(weight=torch.tensor([math.nan], dtype=torch.float64)), 'weight holds NaN'),
        (dict(avg_factor=math.nan), 'avg_factor is nan'),
        (
            dict(weight=torch.tensor([1.7e308], dtype=torch.float64), reduction_override='sum'),
            'too large for torch.float64',
        ),
    ],
    ids=['weight', 'avg_factor', 'overflow'],
)
def test_result_that_is_not_finite_is_explained(name, kwargs, message):
    with pytest.raises(ValueError, match=f'{name}: the loss is not finite though pred holds no NaN: .*{message}'):
        getattr(ours, name)()(*loss_input(name), **kwargs)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('shape', [(N + 1,), (N, N), (2, 1, 1)], ids=str)
def test_weight_that_does_not_fit_is_refused(name, shape):
    expected = rf'\({N}, {C}\), one per entry' if name == 'VarifocalLoss' else rf'\({N},\), one per row'
    with pytest.raises(ValueError, match=rf'{name}: weight must have shape {expected}'):
        getattr(ours, name)()(*loss_input(name), weight=torch.ones(shape))
    with pytest.raises(TypeError, match='weight must be a tensor; got list'):
        getattr(ours, name)()(*loss_input(name), weight=[1.0] * N)


def test_column_of_row_weights_is_refused_where_mmdet_would_blow_it_up():
    pred, target = distance_input()
    column = torch.ones(N, 1)
    assert theirs.DistributionFocalLoss(reduction='none')(pred, target, column).shape == (N, N)
    with pytest.raises(ValueError, match='one per row'):
        ours.DistributionFocalLoss(reduction='none')(pred, target, column)


X = torch.zeros(4, 3)
LABEL, SCORE = torch.tensor([0, 1, 2, 3]), torch.full((4,), 0.5)


@pytest.mark.parametrize(
    ('name', 'pred', 'target', 'error', 'message'),
    [
        ('QualityFocalLoss', [1.0], (LABEL, SCORE), TypeError, 'pred must be a floating-point tensor.*got list'),
        ('QualityFocalLoss', X.long(), (LABEL, SCORE), TypeError, 'pred must be a floating.*got torch.int64'),
        ('QualityFocalLoss', X[None], (LABEL, SCORE), ValueError, r'pred must have shape \(N, C\); got \(1, 4, 3\)'),
        ('QualityFocalLoss', X[:, :0], (LABEL, SCORE), ValueError, r'got \(4, 0\)'),
        ('QualityFocalLoss', X, LABEL, ValueError, r'target must have shape \(4, 3\); got \(4,\).*pair'),
        ('QualityFocalLoss', X, X[:, :2], ValueError, r'target must have shape \(4, 3\); got \(4, 2\)'),
        ('QualityFocalLoss', X, (LABEL,), ValueError, r'pair \(label, score\).*Got a tuple of 1'),
        ('QualityFocalLoss', X, (LABEL, SCORE, SCORE), ValueError, 'Got a tuple of 3'),
        ('QualityFocalLoss', X, None, TypeError, 'Got NoneType'),
        ('QualityFocalLoss', X, (LABEL[:3], SCORE), ValueError, r'label must have shape \(4,\); got \(3,\)'),
        ('QualityFocalLoss', X, (LABEL, SCORE[:, None]), ValueError, r'score must have shape \(4,\); got \(4, 1\)'),
        ('QualityFocalLoss', X, (LABEL, 1.0), TypeError, 'score must be a tensor; got float'),
        ('QualityFocalLoss', X, (LABEL + 1, SCORE), ValueError, r'label must lie in \[0, 3\].*in 1 to 4.*num_classes'),
        ('QualityFocalLoss', X, (LABEL - 1, SCORE), ValueError, r'label must lie in \[0, 3\].*in -1 to 2'),
        ('QualityFocalLoss', X, (SCORE, SCORE), ValueError, 'label must hold whole numbers; got fractions'),
        ('QualityFocalLoss', X, (SCORE * math.nan, SCORE), ValueError, 'label must lie.*4 NaN of 4'),
        ('QualityFocalLoss', X, (SCORE > 0, SCORE), TypeError, 'label must hold whole numbers.*torch.bool'),
        ('QualityFocalLoss', X, (LABEL, SCORE * 3), ValueError, r'score must lie in \[0, 1\].*in 1.5 to 1.5'),
        ('QualityFocalLoss', X, (LABEL, -SCORE), ValueError, r'score must lie in \[0, 1\].*in -0.5 to'),
        ('QualityFocalLoss', X, (LABEL, SCORE * math.nan), ValueError, 'score must lie.*3 NaN of 3'),
        ('QualityFocalLoss', X, X + 1.5, ValueError, r'target must lie in \[0, 1\]; it lies in 1.5 to 1.5'),
        ('QualityFocalLoss', X, X * math.nan, ValueError, 'target must lie.*12 NaN of 12'),
        ('VarifocalLoss', X, (LABEL, SCORE), TypeError, 'target must be a tensor; got tuple'),
        ('VarifocalLoss', X, LABEL, ValueError, r'target must have shape \(4, 3\); got \(4,\)'),
        ('VarifocalLoss', X, X - 0.5, ValueError, r'target must lie in \[0, 1\]; it lies in -0.5 to -0.5'),
        ('VarifocalLoss', X, X * math.nan, ValueError, 'target must lie.*12 NaN of 12'),
        ('VarifocalLoss', X.long(), X, TypeError, 'pred must be a floating'),
        ('DistributionFocalLoss', X[0], SCORE, ValueError, r'pred must have shape \(N, n \+ 1\); got \(3,\)'),
        ('DistributionFocalLoss', X, SCORE[:3], ValueError, r'target must have shape \(4,\); got \(3,\)'),
        ('DistributionFocalLoss', X, SCORE - 1, ValueError, r'target must lie in \[0, 2\].*in -0.5 to -0.5'),
        ('DistributionFocalLoss', X, SCORE * math.nan, ValueError, 'target must lie.*4 NaN of 4'),
        (
            'DistributionFocalLoss',
            X,
            SCORE * 5,
            ValueError,
            r'target must lie in \[0, 2\], as pred has reg_max 2.*to 2.5.*larger reg_max.*more levels',
        ),
    ],
)
@pytest.mark.parametrize('reduction', ['none', 'mean'])
def test_bad_input_is_named(name, pred, target, error, message, reduction):
    with pytest.raises(error, match=f'^{name}: .*{message}'):
        getattr(ours, name)(reduction=reduction)(pred, target)


@pytest.mark.parametrize('value', [-0.1, 1.1])
def test_logits_where_probabilities_are_due_are_refused(value):
    with pytest.raises(ValueError, match=r'activated=True takes probabilities in \[0, 1\]; pred lies in'):
        ours.QualityFocalLoss(activated=True)(X + value, (LABEL, SCORE))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_rounding_above_one_is_forgiven(dtype):
    above = torch.tensor(1, dtype=dtype) + torch.finfo(dtype).eps
    assert above > 1
    assert ours.QualityFocalLoss()(X, (LABEL, above.expand(4))).isfinite()
    assert ours.VarifocalLoss()(X, above.expand(4, 3)).isfinite()


NO_NUMBERS = ['2', [2.0], np.array([2.0]), None]


@pytest.mark.parametrize('name, option', [('Quality', 'beta'), ('Varifocal', 'alpha'), ('Varifocal', 'gamma')])
def test_exponents_and_factors_that_are_no_numbers_are_named(name, option):
    name, function = dict(
        Quality=('QualityFocalLoss', ours.quality_focal_loss), Varifocal=('VarifocalLoss', ours.varifocal_loss)
    )[name]
    given = loss_input(name)
    for error, value in [
        *((TypeError, value) for value in NO_NUMBERS),
        *((ValueError, value) for value in (math.nan, math.inf, -1.0)),
    ]:
        with pytest.raises(error, match=f'{name}: {option} must be '):
            function(*given, **{option: value})
        with pytest.raises(error, match=f'{name}: {option} must be '):
            getattr(ours, name)(**{option: value})
    for value in (np.float32(2), np.array(2.0), torch.tensor(2.0), 2):
        torch.testing.assert_close(
            getattr(ours, name)(**{option: value})(*given), getattr(theirs, name)(**{option: 2.0})(*given)
        )


@pytest.mark.parametrize('name', NAMES)
def test_arguments_of_the_modules_that_are_no_numbers_or_switches_are_named(name):
    with pytest.raises(TypeError, match=f"{name}: loss_weight must be a number, got '1'"):
        getattr(ours, name)(loss_weight='1')
    switched = {'QualityFocalLoss': 'activated', 'VarifocalLoss': 'iou_weighted'}.get(name)
    if switched:
        with pytest.raises(TypeError, match=f"{name}: {switched} must be True or False, got 'False'"):
            getattr(ours, name)(**{switched: 'False'})


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_average_factors_that_are_no_numbers_are_named(name, reduction):
    loss, given = getattr(ours, name)(), loss_input(name)
    for value in ('3', [3.0], np.array([3.0]), 3j):
        with pytest.raises(TypeError, match=f'{name}: avg_factor must be a number or a tensor of one; got .* of type'):
            loss(*given, avg_factor=value, reduction_override=reduction)
    for value in (torch.ones(2), torch.ones(1, 1), torch.ones(0)):
        with pytest.raises(ValueError, match=f'{name}: avg_factor must be one real number; got a tensor of shape'):
            loss(*given, avg_factor=value, reduction_override=reduction)
    expected = getattr(theirs, name)()(*given, avg_factor=3.0, reduction_override=reduction)
    for value in (np.float32(3), torch.tensor(3), torch.tensor([3.0])):
        found = loss(*given, avg_factor=value, reduction_override=reduction)
        torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('which', ['pred', 'target', 'weight', 'gradient'])
def test_negated_views_are_what_they_show(name, dtype, which):
    pred, target = loss_input(name, dtype)
    pred.requires_grad_()
    weight = torch.rand(N, dtype=dtype) if name != 'VarifocalLoss' else torch.rand(N, C, dtype=dtype)
    grad = torch.rand(N, dtype=dtype) if name != 'VarifocalLoss' else torch.rand(N, C, dtype=dtype)

    def values(pred, target, weight, grad):
        loss = getattr(ours, name)(reduction='none')(pred, target, weight)
        return loss.detach(), torch.autograd.grad(loss, pred, grad)[0]

    def negated(value):
        return tuple(map(negated, value)) if isinstance(value, tuple) else torch._neg_view(-value)

    given = dict(pred=pred, target=target, weight=weight, grad=grad)
    expected = values(**given)
    key = 'grad' if which == 'gradient' else which
    if key == 'target' and name == 'QualityFocalLoss':
        given['target'] = target[0], negated(target[1])
    else:
        given[key] = negated(given[key])
    for value, wanted in zip(values(**given), expected):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize('form', ['labels', 'dense'])
@pytest.mark.parametrize('bad', [1.5, -0.5, math.nan, math.inf])
def test_illegal_qualities_beside_probabilities_are_named(form, bad):
    pred, target = quality_input(form, activated=True)
    if form == 'labels':
        target[0][3], target[1][3] = 0, bad
    else:
        target[3, 0] = bad
    name = 'score' if form == 'labels' else 'target'
    with pytest.raises(ValueError, match=rf'QualityFocalLoss: {name} must lie in \[0, 1\]'):
        ours.QualityFocalLoss(activated=True)(pred, target)


def test_qualities_that_rounding_left_above_one_are_taken_beside_probabilities():
    pred, target = quality_input('dense', activated=True, dtype=torch.float32)
    over = torch.where(target == 1, 1 + torch.finfo(torch.float32).eps, target)
    assert (over > 1).any()
    loss = ours.QualityFocalLoss(activated=True)
    torch.testing.assert_close(loss(pred, over), loss(pred, target))


def test_terms_that_are_not_finite_are_explained_by_their_input():
    bad, good = torch.tensor([1.0, math.nan, math.inf]), torch.ones(3)
    terms = dict(loss_cls=good.sum(), loss_bbox=bad.sum())
    check_finite('Head', {}, {})
    check_finite('Head', dict(loss_cls=good), dict(weight=bad))
    check_finite('Head', dict(one=torch.tensor(3e38), two=torch.tensor(3e38)), {})
    with pytest.raises(ValueError, match='Head: loss_bbox not finite: scores holds 2 NaN or infinite of 3 entries'):
        check_finite('Head', terms, dict(weight=None, avg_factor=2.0, scores=bad))
    with pytest.raises(ValueError, match='Head: loss_bbox not finite: avg_factor holds 1 NaN'):
        check_finite('Head', terms, dict(avg_factor=math.nan, scores=bad))
    with pytest.raises(ValueError, match='Head: loss_bbox not finite: loss_bbox overflows torch.float32'):
        check_finite('Head', terms, dict(scores=good))
