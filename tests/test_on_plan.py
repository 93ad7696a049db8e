"""Heads of other projects, subclasses of mmdet's, on the plan in one line; and those that would lose it are refused."""

import copy
import pickle

import pytest
import torch
from mmdet.models import dense_heads
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS
from test_plan_heads import (
    DENSE,
    SOFT_DENSE,
    assert_same_losses,
    dense_outputs,
    detr_outputs,
    ground_truths,
    head_config,
)

from uotod_mmdet import heads
from uotod_mmdet.heads import on_plan
from uotod_mmdet.registry import MODELS as OUR_MODELS

# Stand-ins with the structure of the heads of mmdet's projects and of ports; their losses are short.


class CoDINOHead(dense_heads.DINOHead):
    """As in Co-DETR: its own loss and loss_by_feat, auxiliary losses, and DETRHead's losses by super()."""

    def __init__(self, *args, aux_weight=0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.aux_weight = aux_weight

    def loss(self, hidden_states, references, enc_class, enc_coord, batch_data_samples, dn_meta):
        outputs = self(hidden_states, references)
        gts, metas = zip(*((sample.gt_instances, sample.metainfo) for sample in batch_data_samples))
        return self.loss_by_feat(*outputs, enc_class, enc_coord, list(gts), list(metas), dn_meta)

    def loss_by_feat(self, scores, boxes, enc_scores, enc_boxes, gts, metas, dn_meta, ignored=None):
        scores, boxes, *denoising = self.split_outputs(scores, boxes, dn_meta)
        losses = super(dense_heads.DeformableDETRHead, self).loss_by_feat(scores, boxes, gts, metas, ignored)
        names = 'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou'
        losses.update(zip(names, self.loss_by_feat_single(enc_scores, enc_boxes, gts, metas)))
        for name, values in zip(
            ('dn_loss_cls', 'dn_loss_bbox', 'dn_loss_iou'), self.loss_dn(*denoising, gts, metas, dn_meta)
        ):
            losses[name] = values[-1]
        losses['loss_aux'] = self.aux_weight * scores.square().mean()
        return losses


class RTDETRHead(dense_heads.DINOHead):
    """As in ports of RT-DETR: the decoder gives the predictions, the losses are DINOHead's."""

    def forward(self, hidden_states, references):
        return hidden_states, references

    def loss(self, scores, boxes, enc_scores, enc_boxes, gts, metas, dn_meta):
        return self.loss_by_feat(*self(scores, boxes), enc_scores, enc_boxes, gts, metas, dn_meta)


class ScaledHead(dense_heads.DINOHead):
    """A loss of a layer that changes DETRHead's."""

    def loss_by_feat_single(self, cls_scores, bbox_preds, batch_gt_instances, batch_img_metas):
        loss_cls, *boxes = super().loss_by_feat_single(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas)
        return 3 * loss_cls, *boxes


class EachLayerHead(dense_heads.DETRHead):
    """A copy of DETRHead.loss_by_feat, which asks for the losses of each layer."""

    def loss_by_feat(self, all_layers_cls_scores, all_layers_bbox_preds, gts, metas, ignored=None):
        losses = multi_apply(
            self.loss_by_feat_single,
            all_layers_cls_scores,
            all_layers_bbox_preds,
            batch_gt_instances=gts,
            batch_img_metas=metas,
        )
        names = 'loss_cls', 'loss_bbox', 'loss_iou'
        return {f'd{layer}.{name}': value for name, values in zip(names, losses) for layer, value in enumerate(values)}


class CenternessHead(dense_heads.ATSSHead):
    """A dense head with one more loss."""

    def loss_by_feat(self, cls_scores, *args, **kwargs):
        losses = super().loss_by_feat(cls_scores, *args, **kwargs)
        return {**losses, 'loss_scores': sum(level.square().mean() for level in cls_scores)}


def build(kind: type, head: str, soft: bool = False, **changes) -> torch.nn.Module:
    """A class with the config of mmdet's head; ``soft``: with a soft plan, else with mmdet's assigner."""
    train_cfg = head_config(head).train_cfg
    if soft and head in DENSE:
        train_cfg.assigner = dict(SOFT_DENSE)
    elif soft:
        costs = train_cfg.assigner.match_costs
        train_cfg.assigner = dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=costs, reg=0.05)
    cfg = head_config(head, train_cfg=train_cfg, **changes)
    cfg.pop('type')
    torch.manual_seed(0)
    return kind(**cfg)


def dino_inputs(columns: int = 5) -> tuple[list, list]:
    gts, _, metas = ground_truths(3, with_ignored=False)
    scores, boxes = detr_outputs(columns, 5)
    enc_scores, enc_boxes = (leaf[0] for leaf in detr_outputs(columns, 6, num_preds=90))
    dn_meta = dict(num_denoising_queries=12, num_denoising_groups=1)
    args = [scores, boxes.sigmoid(), enc_scores, enc_boxes.sigmoid(), gts, metas, dn_meta]
    return [scores, boxes, enc_scores, enc_boxes], args


@pytest.mark.parametrize('theirs', [CoDINOHead, RTDETRHead, ScaledHead])
def test_with_a_hard_plan_a_head_of_others_is_itself(theirs):
    leaves, args = dino_inputs()
    losses = [build(kind, 'DINOHead').loss_by_feat(*args) for kind in (theirs, on_plan(theirs))]
    assert_same_losses(*losses, leaves)


@pytest.mark.parametrize('theirs, layers_at_once', [(CoDINOHead, 3), (RTDETRHead, 3), (ScaledHead, 1)])
def test_with_a_soft_plan_it_has_our_losses_and_its_own(theirs, layers_at_once):
    _, args = dino_inputs()
    ours = build(heads.DINOHead, 'DINOHead', soft=True).loss_by_feat(*args)
    model = build(on_plan(theirs), 'DINOHead', soft=True, min_weight=1e-5)
    shapes, match_batch = [], model.matcher.match_batch
    model.matcher.match_batch = lambda batch: shapes.append(batch.shape[0]) or match_batch(batch)
    losses = model.loss_by_feat(*args)
    assert set(shapes) == {3, 3 * layers_at_once}  # images, and of how many layers
    factor = 3 if theirs is ScaledHead else 1
    for name in ('loss_cls', 'd0.loss_cls', 'd1.loss_cls', 'enc_loss_cls'):
        torch.testing.assert_close(losses[name], factor * ours[name])
    for name in ('loss_bbox', 'd1.loss_iou', 'dn_loss_cls'):
        torch.testing.assert_close(losses[name], ours[name])
    assert ('loss_aux' in losses) == (theirs is CoDINOHead)


def test_a_loop_over_layers_of_its_own_trains_each_layer_on_its_plan():
    gts, _, metas = ground_truths(3, with_ignored=False)
    scores, boxes = detr_outputs(5, 5)
    sigmoid = dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True))
    args = scores, boxes.sigmoid(), gts, metas
    ours = build(heads.DETRHead, 'DETRHead', soft=True, **sigmoid).loss_by_feat(*args)
    losses = build(on_plan(EachLayerHead), 'DETRHead', soft=True, **sigmoid).loss_by_feat(*args)
    for name, value in losses.items():
        torch.testing.assert_close(value, ours[name.removeprefix('d2.')])
    both = [build(kind, 'DETRHead', **sigmoid).loss_by_feat(*args) for kind in (EachLayerHead, on_plan(EachLayerHead))]
    assert_same_losses(*both, [scores, boxes])


def test_a_dense_head_of_others_trains_on_the_plan():
    gts, ignored, metas = ground_truths(0, with_ignored=True)
    stock, ours = build(CenternessHead, 'ATSSHead'), build(on_plan(CenternessHead), 'ATSSHead')
    assert isinstance(ours, heads.ATSSHead) and isinstance(ours, CenternessHead)
    outputs = outputs_of(stock)
    leaves = [level for maps in outputs for level in maps]
    assert_same_losses(*(head.loss_by_feat(*outputs, gts, metas, ignored) for head in (stock, ours)), leaves)
    soft = build(on_plan(CenternessHead), 'ATSSHead', soft=True).loss_by_feat(*outputs, gts, metas, ignored)
    expected = build(heads.ATSSHead, 'ATSSHead', soft=True).loss_by_feat(*outputs, gts, metas, ignored)
    for name, value in expected.items():
        torch.testing.assert_close(soft[name], value)
    assert soft['loss_scores'] > 0


def outputs_of(head: torch.nn.Module) -> list:
    named = copy.copy(head)
    named.__class__ = dense_heads.ATSSHead
    return dense_outputs(named, 0)


# What is refused


class AlignDETRHead(dense_heads.DINOHead):
    """As in Align-DETR: the loss of a layer and its targets are its own."""

    def loss_by_feat_single(self, cls_scores, bbox_preds, batch_gt_instances, batch_img_metas):
        targets = self.get_targets(list(cls_scores), list(bbox_preds), batch_gt_instances, batch_img_metas)
        return cls_scores.sum() * len(targets), bbox_preds.sum(), bbox_preds.sum()


class OwnLossHead(dense_heads.DINOHead):
    def loss(self, hidden_states, *args, **kwargs):
        return dict(loss=hidden_states.sum())


class OwnLossByFeatHead(dense_heads.ATSSHead):
    def loss_by_feat(self, cls_scores, *args, **kwargs):
        return dict(loss=self.loss_by_feat_single(cls_scores))


class ExplicitBaseHead(dense_heads.DINOHead):
    """Calls mmdet's method past the method order."""

    def loss_by_feat(self, *args, **kwargs):
        return dense_heads.DINOHead.loss_by_feat(self, *args, **kwargs)


class OwnTargetsHead(dense_heads.DeformableDETRHead):
    def get_targets(self, *args, **kwargs):
        return super().get_targets(*args, **kwargs)


class OwnTargetsOfImageHead(dense_heads.ATSSHead):
    def _get_targets_single(self, *args, **kwargs):
        return super()._get_targets_single(*args, **kwargs)


class OwnRefinedTargetsHead(dense_heads.VFNetHead):
    def transform_bbox_targets(self, *args, **kwargs):
        return super().transform_bbox_targets(*args, **kwargs)


class GrandchildHead(OwnTargetsHead):
    pass


@pytest.mark.parametrize(
    'head, message',
    [
        (
            AlignDETRHead,
            'AlignDETRHead overrides loss_by_feat_single and does not call super().loss_by_feat_single, so',
        ),
        (OwnLossHead, 'overrides loss and does not call super().loss or self.loss_by_feat or self.loss_by_feat_single'),
        (OwnLossByFeatHead, 'OwnLossByFeatHead overrides loss_by_feat and does not call super().loss_by_feat, so'),
        (ExplicitBaseHead, 'ExplicitBaseHead overrides loss_by_feat and does not call super().loss_by_feat or'),
        (OwnTargetsHead, 'OwnTargetsHead overrides get_targets, which training on the plan does not call'),
        (OwnTargetsOfImageHead, 'overrides _get_targets_single, which training on the plan does not call'),
        (OwnRefinedTargetsHead, 'overrides transform_bbox_targets, which training on the plan does not call'),
        (GrandchildHead, 'OwnTargetsHead overrides get_targets, .* or keep GrandchildHead as it is'),
        (dense_heads.PAAHead, 'PAAHead overrides (get_targets|loss_by_feat)'),
        (dense_heads.CornerHead, 'CornerHead is not a subclass of a head of mmdet .* are ATSSHead, .*, DINOHead, '),
        (torch.nn.Linear, 'torch.*Linear is not a subclass of a head of mmdet that trains on the plan'),
        (type('Mine', (heads.DINOHead,), {}), 'Mine has a head of uotod_mmdet among its bases'),
    ],
)
def test_a_head_that_would_lose_the_plan_is_refused(head, message):
    with pytest.raises(ValueError, match=message.replace('()', r'\(\)')):
        on_plan(head)


def test_what_is_no_class_is_refused():
    with pytest.raises(TypeError, match="on_plan puts a class of a head on the plan, got 'CoDINOHead' of type str"):
        on_plan('CoDINOHead')


# Names


@on_plan(register=True)
class DecoratedHead(dense_heads.DINOHead):
    """Its name is the new class."""


def test_the_nearest_head_of_ours_is_the_base():
    assert on_plan(CoDINOHead).__mro__[:3] == (on_plan(CoDINOHead), CoDINOHead, heads.DINOHead)
    assert on_plan(EachLayerHead).__mro__[2] is heads.DETRHead
    assert on_plan(type('Mine', (dense_heads.GroundingDINOHead,), {})).__mro__[2] is heads.GroundingDINOHead
    assert on_plan(type('Mine', (dense_heads.DDQDETRHead,), {})).__mro__[2] is heads.DDQDETRHead
    assert on_plan(type('Mine', (dense_heads.GFLHead,), {})).__mro__[2] is heads.GFLHead
    assert on_plan(dense_heads.DINOHead) is heads.DINOHead


def test_the_class_is_made_once_and_registered_under_its_name_if_asked_for():
    made = on_plan(CoDINOHead)
    assert made is on_plan(CoDINOHead) and made.__name__ == 'CoDINOHead' and 'CoDINOHead' not in OUR_MODELS.module_dict
    assert on_plan(CoDINOHead, register=True) is made is on_plan(CoDINOHead, register=True)
    try:
        cfg = {**head_config('DINOHead'), 'type': 'uotod_mmdet.CoDINOHead', 'aux_weight': 0.25}
        assert type(MODELS.build(cfg)) is made and MODELS.build(cfg).aux_weight == 0.25
        with pytest.raises(TypeError, match="CoDINOHead has no argument 'aux_wieght'; did you mean 'aux_weight'"):
            MODELS.build({**cfg, 'aux_wieght': 1})
        with pytest.raises(ValueError, match='uotod_mmdet has a head CoDINOHead already'):
            on_plan(type('CoDINOHead', (dense_heads.DINOHead,), {}), register=True)
    finally:
        OUR_MODELS.module_dict.pop('CoDINOHead')
    assert OUR_MODELS.get('DecoratedHead') is DecoratedHead and issubclass(DecoratedHead, heads.DINOHead)


@pytest.mark.parametrize('kind', [on_plan(CoDINOHead), DecoratedHead, heads.DDQDETRHead, heads.GroundingDINOHead])
def test_class_and_instance_survive_pickle_and_copy(kind):
    assert pickle.loads(pickle.dumps(kind)) is kind
    if kind in (on_plan(CoDINOHead), DecoratedHead):
        model = build(kind, 'DINOHead')
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert type(again) is kind
            for ours, theirs in zip(model.parameters(), again.parameters()):
                assert torch.equal(ours, theirs)
