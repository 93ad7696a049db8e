"""Every loss of mmdet's registry in our heads: what mmdet's head makes of it, or a sentence when the head is built."""

import copy

import mmdet.models.losses
import pytest
import torch
from mmdet.models.losses import L1Loss
from mmdet.registry import MODELS
from mmengine.config import Config
from test_plan_heads import DENSE, NUM_CLASSES, dense_outputs, detr_outputs, ground_truths, head_config, total
from torch import nn

from uotod_mmdet.plan import check_box_loss, check_classification_loss

NAMES = sorted(
    name
    for name in mmdet.models.losses.__all__
    if isinstance(getattr(mmdet.models.losses, name), type) and name in MODELS.module_dict
)
BOX_LOSSES = {
    *('BalancedL1Loss', 'BoundedIoULoss', 'CIoULoss', 'DIoULoss', 'EIoULoss', 'GIoULoss', 'IoULoss', 'L1Loss'),
    *('MSELoss', 'SIoULoss', 'SmoothL1Loss'),
}
LABELS = {'CrossEntropyLoss', 'CrossEntropyCustomLoss', 'FocalLoss', 'FocalCustomLoss'}
QUALITIES = {'QualityFocalLoss', 'VarifocalLoss'}
# Element by element and, though not made for boxes, as good as mmdet's there.
ELEMENTWISE = {'CrossEntropyCustomLoss', 'CrossEntropyLoss', 'FocalLoss', 'VarifocalLoss'}
FITTING = {
    ('RetinaHead', 'loss_cls'): LABELS | QUALITIES,
    ('ATSSHead', 'loss_cls'): LABELS | QUALITIES,
    ('GFLHead', 'loss_cls'): LABELS | QUALITIES,
    ('VFNetHead', 'loss_cls'): QUALITIES,
    ('DETRHead', 'loss_cls'): LABELS | QUALITIES,
    **{(head, 'loss_bbox'): BOX_LOSSES | ELEMENTWISE for head in ('RetinaHead', 'ATSSHead', 'GFLHead', 'VFNetHead')},
    ('DETRHead', 'loss_bbox'): BOX_LOSSES | ELEMENTWISE,
    ('DETRHead', 'loss_iou'): BOX_LOSSES | ELEMENTWISE,
}


def loss_config(name: str) -> dict:
    config = dict(type=name)
    if name in (*LABELS, *QUALITIES, 'GHMC', 'EQLV2Loss'):
        config['use_sigmoid'] = True
    if 'Custom' in name or name in ('EQLV2Loss', 'SeesawLoss'):
        config['num_classes'] = NUM_CLASSES
    return config


def losses_of(head: nn.Module, name: str) -> dict:
    gts, _, metas = ground_truths(0, with_ignored=False)
    if name in DENSE:
        return head.loss_by_feat(*dense_outputs(head, 0), gts, metas)
    scores, boxes = detr_outputs(head.cls_out_channels, 0, num_layers=1)
    return head.loss_by_feat(scores, boxes.sigmoid(), gts, metas)


@pytest.mark.slow
@pytest.mark.parametrize('head, argument', FITTING)
def test_each_loss_has_the_value_of_mmdets_head_or_is_refused_with_those_that_fit(head, argument):
    built, equal = set(), set()
    for name in NAMES:
        config = head_config(head, **{argument: loss_config(name)})
        if head == 'RetinaHead' and argument == 'loss_bbox':
            config.reg_decoded_bbox = True
        if head in DENSE:  # layers that no loss sees
            config.update(in_channels=32, feat_channels=32, stacked_convs=1)
        try:
            ours = MODELS.build({**copy.deepcopy(config), 'type': f'uotod_mmdet.{head}'})
        except (ValueError, TypeError) as error:
            assert 'Losses that fit: ' in str(error), f'{name}: {error}'
            continue
        built.add(name)
        found = losses_of(ours, head)
        try:
            stock = losses_of(MODELS.build(config), head)
        except (AssertionError, AttributeError, RuntimeError, TypeError):  # mmdet's head cannot take the loss
            continue
        equal.add(name)
        for key in (key for key in stock if 'loss' in key):
            expected = torch.as_tensor(total(stock, key))
            torch.testing.assert_close(
                found[key],
                expected.reshape(found[key].shape),
                rtol=1e-4,
                atol=1e-6,
                equal_nan=True,
                msg=f'{name} {key}',
            )
    assert built >= FITTING[head, argument] - ({'CrossEntropyLoss'} if argument != 'loss_cls' else set())
    assert built <= FITTING[head, argument]
    assert equal  # with some mmdet's head was compared


def softmax_config(head: str) -> dict:
    return head_config(head, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False))


def test_a_softmax_loss_in_the_head_that_predicts_by_a_sigmoid_is_refused():
    with pytest.raises(ValueError, match='reads scores by a sigmoid when it predicts, but loss_cls=CrossEntropyLoss'):
        MODELS.build({**softmax_config('GFLHead'), 'type': 'uotod_mmdet.GFLHead'})


@pytest.mark.parametrize('head', ['RetinaHead', 'ATSSHead'])
def test_a_softmax_loss_trains_and_predicts_where_mmdets_head_does(head):
    model = MODELS.build({**softmax_config(head), 'type': f'uotod_mmdet.{head}'})
    stock = MODELS.build(softmax_config(head))
    found, expected = losses_of(model, head), losses_of(stock, head)
    torch.testing.assert_close(found['loss_cls'], torch.as_tensor(total(expected, 'loss_cls')), rtol=1e-4, atol=1e-6)
    outputs = [[level.detach() for level in maps] for maps in dense_outputs(model, 0)]
    metas = [dict(meta, scale_factor=(1.0, 1.0)) for meta in ground_truths(0, with_ignored=False)[2]]
    if head == 'RetinaHead':
        outputs += [None]
    results = [
        h.predict_by_feat(*outputs[:2], score_factors=outputs[2], batch_img_metas=metas, with_nms=False)
        for h in (model, stock)
    ]
    for ours, theirs in zip(*results):
        assert torch.equal(ours.scores, theirs.scores) and ours.labels.max() < NUM_CLASSES


@pytest.mark.parametrize('head', ['RetinaHead', 'ATSSHead', 'GFLHead'])
def test_a_sigmoid_loss_whose_config_does_not_say_so_is_refused(head):
    with pytest.raises(ValueError, match='use_sigmoid=True'):
        MODELS.build({**head_config(head, loss_cls=dict(type='FocalLoss')), 'type': f'uotod_mmdet.{head}'})


@pytest.mark.parametrize('reduction', ['none', 'sum'])
@pytest.mark.parametrize('head, argument', [('RetinaHead', 'loss_bbox'), ('DETRHead', 'loss_iou')])
def test_a_reduction_that_a_plan_cannot_heed_is_refused(head, argument, reduction):
    config = head_config(head, **{argument: dict(type='GIoULoss', reduction=reduction)})
    with pytest.raises(
        ValueError, match=f"{head}: {argument}=GIoULoss has reduction='{reduction}'.*leave reduction out"
    ):
        MODELS.build({**config, 'type': f'uotod_mmdet.{head}'})


class SquaredDistance(nn.Module):
    """A third party's loss of mmdet's contract, with other names, that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, boxes, truths, label_weight, avg_factor=None, reduction_override=None):
        self.calls += 1
        losses = label_weight * (boxes - truths).square()
        return losses if reduction_override == 'none' else losses.sum() / avg_factor


class OfTheWholeBatch(SquaredDistance):
    def forward(self, boxes, truths, label_weight, **kwargs):
        return super().forward(boxes - boxes.mean(0), truths, label_weight, **kwargs)


class OnOneDeviceOnly(SquaredDistance):
    def forward(self, boxes, truths, label_weight, **kwargs):
        raise NotImplementedError('no implementation for device cpu')


def test_third_party_losses_are_judged_by_what_they_do():
    loss = SquaredDistance()
    check_box_loss('Head', 'loss_bbox', loss)
    assert loss.calls == 0  # the trial leaves no trace
    check_box_loss('Head', 'loss_bbox', OnOneDeviceOnly())
    with pytest.raises(
        ValueError, match='Head: a plan cannot weigh loss_bbox=OfTheWholeBatch: the loss of a row depends'
    ):
        check_box_loss('Head', 'loss_bbox', OfTheWholeBatch())
    with pytest.raises(ValueError, match='a plan cannot weigh loss_cls=L1Loss'):
        check_classification_loss('Head', L1Loss(), 5, 5)


def test_a_loss_that_cannot_be_weighed_may_still_predict():
    config = head_config('RetinaHead', loss_cls=loss_config('GHMC'), train_cfg=None)
    stock, ours = (MODELS.build({**config, 'type': name}).eval() for name in ('RetinaHead', 'uotod_mmdet.RetinaHead'))
    ours.load_state_dict(stock.state_dict())
    feats = [torch.randn(1, config['in_channels'], size, size) for size in (16, 8, 4, 2, 1)]
    meta = dict(img_shape=(128, 128), ori_shape=(128, 128), pad_shape=(128, 128), scale_factor=(1.0, 1.0))
    cfg = Config(
        dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)
    )
    with torch.no_grad():
        ((expected,), (found,)) = (
            head.predict_by_feat(*head(feats), batch_img_metas=[meta], cfg=cfg) for head in (stock, ours)
        )
    assert len(found) and torch.equal(found.scores, expected.scores) and torch.equal(found.bboxes, expected.bboxes)
