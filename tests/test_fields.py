"""Boxes are one field among others: masks, points, proposals; labels and boxes in every form that mmdet has."""

import pytest
import torch
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.structures.mask import BitmapMasks
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from tiny_models import build as build_detector
from tiny_models import images_and_samples

from uotod_mmdet.costs import batch_cost, make_batch

ASSIGNERS = {
    'HungarianAssigner': {},
    'BalancedSinkhornAssigner': {},
    'UnbalancedSinkhornAssigner': {},
    'ClosestPredictionAssigner': {},
    'ClosestTargetAssigner': {},
    'SoftMinAssigner': {},
    'WeightedSumAssigner': dict(strategies=[dict(type='uotod_mmdet.HungarianAssigner')]),
}
MASK_COSTS = [
    dict(type='ClassificationCost', weight=2.0),
    dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='FocalLossCost', weight=20.0, binary_input=True),
    dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
]


def build(name, **kwargs):
    return TASK_UTILS.build(dict(type=f'uotod_mmdet.{name}', **ASSIGNERS[name], **kwargs))


def masks(num_preds=12, num_gts=4, num_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pred = InstanceData(
        scores=torch.randn(num_preds, num_classes + 1, generator=generator),
        masks=torch.randn(num_preds, 8, 8, generator=generator),
    )
    gt = InstanceData(
        labels=torch.randint(0, num_classes, (num_gts,), generator=generator),
        masks=(torch.rand(num_gts, 8, 8, generator=generator) > 0.5).long(),
    )
    return pred, gt


def corners(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = (60 * torch.rand(count, 2, generator=generator)).round()
    return torch.cat([low, low + 5 + (40 * torch.rand(count, 2, generator=generator)).round()], 1)


# Masks and points


@pytest.mark.parametrize('num_gts', [0, 1, 4, 12, 15])
def test_masks_are_matched_as_by_mmdets_hungarian_assigner(num_gts):
    pred, gt = masks(num_gts=num_gts)
    expected = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=MASK_COSTS)).assign(pred, gt, {})
    found = build('HungarianAssigner', match_costs=MASK_COSTS).assign(pred, gt, {})
    assert torch.equal(found.gt_inds, expected.gt_inds)
    assert torch.equal(found.labels, expected.labels)
    assert found.max_overlaps is None and expected.max_overlaps is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_masks_in_half_precision_are_matched_in_float32(dtype):
    pred, gt = masks()
    half = InstanceData(scores=pred.scores.to(dtype), masks=pred.masks.to(dtype))
    rounded = InstanceData(scores=half.scores.float(), masks=half.masks.float())
    assigner = build('HungarianAssigner', match_costs=MASK_COSTS)
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        cost = batch_cost(assigner.match_costs, make_batch([half], [gt]))
        assert torch.equal(assigner.assign(half, gt).gt_inds, assigner.assign(rounded, gt).gt_inds)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, batch_cost(assigner.match_costs, make_batch([rounded], [gt])))


@pytest.mark.parametrize('name', ASSIGNERS)
def test_every_strategy_matches_masks_by_the_sum_of_mmdets_costs(name):
    images = [masks(num_gts=count, seed=count) for count in (3, 0, 5)]
    assigner = build(name, match_costs=MASK_COSTS)
    plan, cost, _ = assigner.match_batch(make_batch([pred for pred, _ in images], [gt for _, gt in images]))
    for index, (pred, gt) in enumerate(images):
        if len(gt):
            expected = sum(term(pred, gt) for term in assigner.match_costs)
            torch.testing.assert_close(cost[index, :, : len(gt)], expected, rtol=1e-5, atol=1e-5)
    gt_mask = torch.arange(5) < torch.tensor([3, 0, 5])[:, None]
    torch.testing.assert_close(plan, assigner.match(cost, gt_mask))
    gt_inds = assigner.assign(*images[0]).gt_inds
    assert set(gt_inds.tolist()) >= {1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    'config', ['maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
)
def test_the_losses_of_mmdets_mask_heads_are_those_with_mmdets_assigner(config):
    model = get_config(f'mmdet::{config}').model
    init_default_scope('mmdet')
    head = model.panoptic_head
    head.update(in_channels=[4, 8, 16, 32], num_queries=10, num_things_classes=80, num_stuff_classes=0)
    head.loss_cls.class_weight = [1.0] * 80 + [0.1]
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    if head.type == 'Mask2FormerHead':
        head.pixel_decoder.encoder.layer_cfg.ffn_cfg.feedforward_channels = 32
        model.train_cfg.num_points = 64
    features = [torch.randn(2, 4 * 2**level, 16 // 2**level, 16 // 2**level) for level in range(4)]
    samples = []
    for count in (3, 0):
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64)))
        drawn = torch.zeros(count, 64, 64, dtype=torch.uint8)
        for index in range(count):
            drawn[index, 10 * index : 10 * index + 20, 5:40] = 1
        sample.gt_instances = InstanceData(labels=torch.arange(count), masks=BitmapMasks(drawn.numpy(), 64, 64))
        samples.append(sample)
    losses = {}
    for prefix in ('', 'uotod_mmdet.'):
        model.train_cfg.assigner.type = f'{prefix}HungarianAssigner'
        torch.manual_seed(0)
        built = MODELS.build({**head, 'train_cfg': model.train_cfg, 'test_cfg': model.test_cfg})
        assert type(built.assigner).__module__.startswith('uotod_mmdet' if prefix else 'mmdet')
        torch.manual_seed(0)
        losses[prefix] = built.loss(features, samples)
    assert losses['uotod_mmdet.'].keys() == losses[''].keys() and len(losses['']) >= 3
    for name, value in losses[''].items():
        assert value > 0 and torch.equal(losses['uotod_mmdet.'][name], value)


class PointCost(BaseMatchCost):
    """A third-party cost on a field of which nobody else knows."""

    def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        assert 'bboxes' not in pred_instances and 'bboxes' not in gt_instances
        return self.weight * torch.cdist(pred_instances.points, gt_instances.points)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', ASSIGNERS)
def test_points_are_matched(name, dtype):
    generator = torch.Generator().manual_seed(0)
    pred = InstanceData(points=torch.rand(9, 2, generator=generator, dtype=dtype))
    gt = InstanceData(points=pred.points[[7, 2]] + 1e-3, labels=torch.tensor([1, 4]))
    gt_inds = build(name, match_costs=[PointCost()], background_cost=0.05).assign(pred, gt).gt_inds
    assert gt_inds[7] == 1 and gt_inds[2] == 2
    assert batch_cost([PointCost()], make_batch([pred], [gt])).dtype == dtype


@pytest.mark.parametrize(
    'cost, message',
    [
        (dict(type='IoUCost'), r"IoUCost needs bboxes \(N, 4\).*\['masks', 'scores'\] of predictions and \['labels', "),
        (dict(type='BBoxL1Cost'), r'BBoxL1Cost needs bboxes'),
        (dict(type='uotod_mmdet.LogIoUCost'), r'LogIoUCost needs bboxes'),
        (dict(type='uotod_mmdet.InsideGTCost'), r'InsideGTCost needs priors'),
    ],
)
def test_a_cost_of_boxes_says_which_field_is_missing(cost, message):
    with pytest.raises(ValueError, match=message):
        build('HungarianAssigner', match_costs=cost).assign(*masks())


def test_other_missing_fields_are_named():
    pred, gt = masks()
    with pytest.raises(ValueError, match=r'IoUCost needs bboxes of ground truths \(M, 4\)'):
        both = InstanceData(bboxes=corners(12), masks=pred.masks)
        build('HungarianAssigner', match_costs=dict(type='IoUCost')).assign(both, gt)
    with pytest.raises(ValueError, match="DiceCost needs a field .*no attribute 'masks'"):
        build('HungarianAssigner', match_costs=dict(type='DiceCost')).assign(InstanceData(scores=pred.scores), gt)
    with pytest.raises(ValueError, match="gt_mass='dynamic_k' needs bboxes"):
        build('BalancedSinkhornAssigner', match_costs=MASK_COSTS, gt_mass='dynamic_k').assign(pred, gt)
    with pytest.raises(ValueError, match='gt_instances_ignore holds boxes.*ignore_iof_thr=-1'):
        build('HungarianAssigner', match_costs=MASK_COSTS).assign(pred, gt, InstanceData(bboxes=corners(2)))
    with pytest.raises(TypeError, match=r'gt_instances.labels of image 0 .* got none; gt_instances holds \[.masks.\]'):
        build('HungarianAssigner', match_costs=MASK_COSTS).assign(pred, InstanceData(masks=gt.masks))
    with pytest.raises(ValueError, match=r'answered with a cost of shape \(12, 1\) for 12 predictions and 4'):
        batch_cost([lambda **kwargs: torch.zeros(12, 1)], make_batch([pred], [gt]))


def test_text_labels_need_not_index_the_scores_of_tokens():
    pred = InstanceData(bboxes=corners(6), scores=torch.randn(6, 16))
    maps = torch.zeros(2, 16)
    maps[0, 3] = maps[1, 7] = 1
    gt = InstanceData(
        bboxes=corners(2, seed=1),
        labels=torch.tensor([40, 1000]),
        positive_maps=maps,
        text_token_mask=torch.ones(2, 16).bool(),
    )
    costs = [dict(type='BinaryFocalLossCost', weight=2.0), dict(type='IoUCost')]
    expected = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=costs)).assign(pred, gt, {})
    assert torch.equal(build('HungarianAssigner', match_costs=costs).assign(pred, gt, {}).gt_inds, expected.gt_inds)


# The second stage


@pytest.mark.parametrize('name', ASSIGNERS)
def test_proposals_with_one_score_each_are_matched_by_their_boxes(name):
    boxes = corners(20)
    gt = InstanceData(bboxes=boxes[[4, 11]] + 1, labels=torch.tensor([3, 5]))
    proposals = InstanceData(priors=boxes, scores=torch.rand(20), labels=torch.zeros(20).long())
    assigner = build(name, match_costs=dict(type='IoUCost'), background_cost=-0.5)
    found = assigner.assign(proposals, gt, None)
    assert torch.equal(found.gt_inds, assigner.assign(InstanceData(priors=boxes), gt, None).gt_inds)
    matched = found.gt_inds > 0
    assert found.gt_inds[4] == 1 and found.gt_inds[11] == 2
    torch.testing.assert_close(
        found.max_overlaps[matched], bbox_overlaps(boxes, gt.bboxes)[matched, found.gt_inds[matched] - 1]
    )
    with pytest.raises(ValueError, match=r"FocalLossCost needs scores \(N, C\).*\['labels', 'priors', 'scores'\]"):
        build(name, match_costs=dict(type='FocalLossCost')).assign(proposals, gt, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    'config', ['faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py']
)
def test_both_stages_train_with_the_assigner_that_is_mmdets_threshold(config):
    """Each prior to its best ground truth above an overlap: the very losses of MaxIoUAssigner."""
    losses = {}
    for ours in (False, True):
        model = get_config(f'mmdet::{config}').model
        init_default_scope('mmdet')
        model.backbone.update(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None)
        model.backbone.norm_cfg.requires_grad = True
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_roi_extractor.out_channels = 16
        stages = model.train_cfg.rcnn if isinstance(model.train_cfg.rcnn, list) else [model.train_cfg.rcnn]
        heads = model.roi_head.bbox_head
        for bbox_head in heads if isinstance(heads, list) else [heads]:
            bbox_head.update(in_channels=16, fc_out_channels=16, num_classes=4)
        for stage in (model.train_cfg.rpn, *stages):
            threshold = 0.5
            stage.sampler = dict(type='PseudoSampler') if stage is model.train_cfg.rpn else stage.sampler
            if ours:
                stage.assigner = dict(
                    type='uotod_mmdet.ClosestTargetAssigner',
                    match_costs=dict(type='IoUCost', iou_mode='iou'),
                    background_cost=-threshold,
                    keep_every_gt=False,
                )
            else:
                stage.assigner.update(
                    pos_iou_thr=threshold, neg_iou_thr=threshold, match_low_quality=False, ignore_iof_thr=-1
                )
        detector = build_detector(model)
        batch = images_and_samples(num_boxes=(3, 0, 2))
        data = detector.data_preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), True)
        torch.manual_seed(1)
        found = detector(**data, mode='loss')
        total = detector.parse_losses(found)[0]
        total.backward()
        losses[ours] = float(total)
    assert losses[True] > 0
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


# Boxes


class AngleCost(BaseMatchCost):
    """A third-party cost of boxes of five numbers, as mmrotate's are."""

    def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        return (pred_instances.bboxes[:, None, 4] - gt_instances.bboxes[:, 4]).abs()


def test_boxes_of_another_form_reach_the_costs_that_read_them():
    angles = torch.rand(8, 5)
    gt = InstanceData(bboxes=angles[[6, 1]], labels=torch.tensor([0, 0]))
    result = build('HungarianAssigner', match_costs=[AngleCost()]).assign(InstanceData(bboxes=angles), gt)
    assert result.gt_inds[6] == 1 and result.gt_inds[1] == 2 and result.max_overlaps is None
    with pytest.raises(ValueError, match=r'IoUCost needs bboxes \(N, 4\)'):
        build('HungarianAssigner', match_costs=dict(type='IoUCost')).assign(InstanceData(bboxes=angles), gt)


def test_coordinates_so_large_that_areas_overflow_are_named():
    pred = InstanceData(bboxes=corners(5) * 1e30, scores=torch.randn(5, 3))
    gt = InstanceData(bboxes=corners(2, seed=1) * 1e30, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r'pred_instances.bboxes: the overlap of . of 5 predictions .* not finite'):
        build('HungarianAssigner', match_costs=dict(type='ClassificationCost')).assign(pred, gt)
    with pytest.raises(ValueError, match='IoUCost is not finite'):
        build('HungarianAssigner', match_costs=dict(type='IoUCost')).assign(pred, gt)


# Nothing to match


@pytest.mark.parametrize('name', ASSIGNERS)
def test_batches_without_images_and_images_without_predictions_or_objects_are_matched(name):
    assigner = build(name, match_costs=[dict(type='FocalLossCost'), dict(type='IoUCost')])
    for predictions in ([], dict(bboxes=torch.zeros(0, 7, 4), scores=torch.zeros(0, 7, 3))):
        batch = make_batch(predictions, [])
        plan, cost, _ = assigner.match_batch(batch)
        num_preds = 7 if predictions else 0
        assert cost.shape == (0, num_preds, 0) and plan.shape == (0, num_preds, 1)
        assert batch_cost(assigner.match_costs, batch).shape == (0, num_preds, 0)
    for num_preds, num_gts in ((0, 3), (5, 0), (0, 0)):
        pred = InstanceData(bboxes=corners(num_preds), scores=torch.randn(num_preds, 3))
        gt = InstanceData(bboxes=corners(num_gts), labels=torch.zeros(num_gts).long())
        ignored = InstanceData(bboxes=corners(1))
        plan = assigner.match_batch(make_batch([pred], [gt], gt_instances_ignore=[ignored])).plan
        assert plan.shape == (1, num_preds, num_gts + 1) and torch.isfinite(plan).all()
        result = assigner.assign(pred, gt, {}, ignored)
        assert result.num_gts == num_gts and result.gt_inds.le(0).all() and len(result.gt_inds) == num_preds
        assert len(result.max_overlaps) == num_preds and result.labels.eq(-1).all()


def test_masks_of_another_shape_or_dtype_are_named():
    pred = InstanceData(bboxes=corners(9))
    gt = InstanceData(bboxes=corners(3), labels=torch.zeros(3).long())
    for mask in (torch.ones(9).bool(), torch.ones(1, 9).bool(), torch.ones(2, 9), torch.ones(2, 9).int()):
        with pytest.raises(ValueError, match=rf'pred_mask must be bool of shape \(2, 9\), got {mask.dtype} of shape'):
            make_batch([pred, pred], [gt, gt], pred_mask=mask)
    with pytest.raises(ValueError, match=r'same number of predictions, got \[4, 9\]'):
        make_batch([pred, pred[:4]], [gt, gt])
