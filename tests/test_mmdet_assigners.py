"""Every assigner of mmdet's registry in our heads: its own matching, or a sentence when the head is built."""

import pytest
import torch
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from test_plan_heads import assert_same_losses, dense_outputs, detr_outputs, ground_truths, head_config

from uotod_mmdet.assigners import batch_matcher
from uotod_mmdet.costs import make_batch

COSTS = [dict(type='FocalLossCost'), dict(type='BBoxL1Cost'), dict(type='IoUCost')]
ARGUMENTS = {
    'ApproxMaxIoUAssigner': dict(pos_iou_thr=0.5, neg_iou_thr=0.4),
    'ATSSAssigner': dict(topk=9),
    'CenterRegionAssigner': dict(pos_scale=0.3, neg_scale=0.5),
    'DynamicSoftLabelAssigner': {},
    'GridAssigner': dict(pos_iou_thr=0.5, neg_iou_thr=0.4),
    'HungarianAssigner': dict(match_costs=COSTS),
    'MaxIoUAssigner': dict(pos_iou_thr=0.5, neg_iou_thr=0.4),
    'MultiInstanceAssigner': dict(pos_iou_thr=0.5, neg_iou_thr=0.4),
    'PointAssigner': {},
    'RegionAssigner': {},
    'SimOTAAssigner': {},
    'TaskAlignedAssigner': dict(topk=13),
    'TopkHungarianAssigner': dict(topk=4),
    'UniformAssigner': dict(pos_ignore_thr=0.15, neg_ignore_thr=0.7),
}
IN_A_DENSE_HEAD = {
    *('ATSSAssigner', 'CenterRegionAssigner', 'HungarianAssigner', 'MaxIoUAssigner', 'TaskAlignedAssigner'),
    *('TopkHungarianAssigner', 'UniformAssigner'),
}
IN_A_DETR_HEAD = {'HungarianAssigner', 'TopkHungarianAssigner'}


def head_with(head: str, assigner: dict) -> torch.nn.Module:
    train_cfg = head_config(head).train_cfg
    train_cfg.assigner = assigner
    return MODELS.build({**head_config(head, train_cfg=train_cfg), 'type': f'uotod_mmdet.{head}'})


def test_the_list_is_that_of_mmdets_registry():
    registered = {
        name
        for name, kind in TASK_UTILS.module_dict.items()
        if isinstance(kind, type) and issubclass(kind, BaseAssigner) and kind.__module__.startswith('mmdet.')
    }
    assert registered == set(ARGUMENTS)


def losses(model: torch.nn.Module, gts: list, ignored: list, metas: list) -> dict:
    if hasattr(model, 'prior_generator'):
        return model.loss_by_feat(*dense_outputs(model, 0), gts, metas, ignored)
    scores, boxes = detr_outputs(model.cls_out_channels, 0)
    return model.loss_by_feat(scores, boxes.sigmoid(), gts, metas)


@pytest.mark.parametrize('name', ARGUMENTS)
@pytest.mark.parametrize('head, works', [('RetinaHead', IN_A_DENSE_HEAD), ('DETRHead', IN_A_DETR_HEAD)])
@pytest.mark.slow
def test_it_trains_or_is_refused_when_the_head_is_built(head, works, name):
    config = dict(type=name, **ARGUMENTS[name])
    if name not in works:
        with pytest.raises(ValueError, match=f'^{name} reads .*(take|use) '):
            head_with(head, config)
        return
    gts, ignored, metas = ground_truths(0, with_ignored=True)
    found = losses(head_with(head, config), gts, ignored, metas)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found['matched_mass'] > 1
    nothing = [gt[:0] for gt in gts]
    assert losses(head_with(head, config), nothing, ignored, metas)['matched_mass'] == 0


@pytest.mark.parametrize('name', ['CenterRegionAssigner', 'MaxIoUAssigner'])
def test_mmdets_head_has_the_same_losses_with_it(name):
    train_cfg = head_config('RetinaHead').train_cfg
    train_cfg.assigner = dict(type=name, **ARGUMENTS[name])
    config = head_config('RetinaHead', train_cfg=train_cfg)
    stock, ours = MODELS.build(config), MODELS.build({**config, 'type': 'uotod_mmdet.RetinaHead'})
    gts, ignored, metas = ground_truths(1, with_ignored=True)
    outputs = dense_outputs(stock, 1)
    both = [h.loss_by_feat(*outputs, gts, metas, ignored) for h in (stock, ours)]
    assert_same_losses(*both, [level for maps in outputs for level in maps])


@pytest.mark.parametrize('name', ['UniformAssigner', 'TopkHungarianAssigner', 'TaskAlignedAssigner', 'SimOTAAssigner'])
def test_the_plan_is_what_the_assigner_answers(name):
    generator = torch.Generator().manual_seed(0)
    points = torch.cartesian_prod(torch.arange(4.0, 64, 8), torch.arange(4.0, 64, 8))
    boxes = torch.cat([points - 9, points + 9], 1) + torch.rand(64, 4, generator=generator)
    priors = torch.cat([points, torch.full_like(points, 8)], 1)
    if name != 'SimOTAAssigner':
        priors = torch.cat([points - 8, points + 8], 1)
    scores = torch.randn(64, 4, generator=generator)
    gt = InstanceData(bboxes=torch.tensor([[2.0, 3, 30, 28], [25, 30, 60, 55]]), labels=torch.tensor([1, 3]))
    assigner = TASK_UTILS.build(dict(type=name, **ARGUMENTS[name]))
    meta = dict(img_shape=(64, 64))
    batch = make_batch(dict(scores=scores[None], bboxes=boxes[None], priors=priors[None]), [gt], [meta])
    (plan,) = batch_matcher(assigner).match_batch(batch).plan
    pred = InstanceData(priors=priors, bboxes=boxes, decoder_priors=boxes, scores=scores.sigmoid())
    if name == 'TopkHungarianAssigner':
        result = assigner.assign(pred.scores, boxes, gt.bboxes, gt.labels, meta)
    else:
        result = assigner.assign(pred, gt)
    expected = torch.zeros(64, 3)
    kept = result.gt_inds >= 0
    expected[kept, (result.gt_inds[kept] - 1) % 3] = 1
    assert torch.equal(plan, expected) and plan[:, :2].sum() > 2


class NeedsMasks:
    def assign(self, pred_instances, gt_instances, **kwargs):
        return pred_instances.masks @ gt_instances.masks


class NeedsEpoch:
    def assign(self, pred_instances, gt_instances, epoch):
        raise AssertionError


@pytest.mark.parametrize(
    'kind, what', [(NeedsMasks, 'reads what this head does not give .*masks'), (NeedsEpoch, 'assign needs epoch')]
)
def test_what_a_third_partys_assigner_misses_is_named(kind, what):
    model = head_with('RetinaHead', dict(type='MaxIoUAssigner', **ARGUMENTS['MaxIoUAssigner']))
    model.matcher = batch_matcher(kind())
    with pytest.raises(ValueError, match=what):
        losses(model, *ground_truths(0, with_ignored=False))
