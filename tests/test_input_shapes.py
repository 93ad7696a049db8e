"""Wrong shapes, types and counts of what heads, costs and assigners are given are refused by the argument's name."""

import pytest
import test_plan_heads as heads
import torch
from mmengine.structures import InstanceData

from uotod_mmdet.assigners import batch_matcher
from uotod_mmdet.costs import batch_cost, make_batch
from uotod_mmdet.registry import TASK_UTILS

STRATEGIES = (
    'ClosestPredictionAssigner',
    'ClosestTargetAssigner',
    'HungarianAssigner',
    'SoftMinAssigner',
    'BalancedSinkhornAssigner',
    'UnbalancedSinkhornAssigner',
)


@pytest.mark.parametrize('background', [True, False])
@pytest.mark.parametrize('name', STRATEGIES)
def test_without_ground_truths_a_plan_has_the_background_column_alone(name, background):
    assigner = TASK_UTILS.build(
        dict(type=f'uotod_mmdet.{name}', match_costs=dict(type='IoUCost'), background=background)
    )
    plan = assigner.match(torch.zeros(2, 5, 0))
    assert plan.shape == (2, 5, 1)
    assert torch.allclose(plan, torch.full_like(plan, float(background)), atol=1e-3)


def images(*shapes: tuple) -> tuple[list, list]:
    predictions = [InstanceData(bboxes=torch.rand(4, 4), scores=torch.rand(shape)) for shape in shapes]
    gts = [InstanceData(bboxes=torch.tensor([[0.0, 0, 9, 9]]), labels=torch.tensor([0])) for _ in shapes]
    return predictions, gts


def test_predictions_of_other_shapes_and_counts_are_refused_by_name():
    predictions, gts = images((4, 3), (4, 2))
    with pytest.raises(ValueError, match=r'predictions.scores must be tensors of one shape .*\(4, 3\), \(4, 2\)'):
        make_batch(predictions, gts)
    predictions, gts = images((4, 3), (4, 3))
    with pytest.raises(ValueError, match=r"gt_instances are of 1 images, but there are .*'scores': 2"):
        make_batch(predictions, gts[:1])
    with pytest.raises(ValueError, match=r"gt_instances are of 2 images, but there are .*'img_metas': 1"):
        make_batch(predictions, gts, [{}])
    with pytest.raises(ValueError, match='predictions must hold tensors of the same B images and N predictions'):
        make_batch(dict(bboxes=torch.rand(2, 4, 4), scores=torch.rand(2, 3, 3)), gts)


@pytest.mark.parametrize('name', ['gt_mask', 'pred_mask'])
def test_a_mask_of_numbers_is_refused_by_the_costs(name):
    batch = make_batch(*images((4, 3), (4, 3)))
    mask = dict(gt_mask=torch.ones(2, 1), pred_mask=torch.ones(2, 4))[name]
    with pytest.raises(ValueError, match=rf'{name} must be bool of shape .*, got torch.float32'):
        batch_cost([TASK_UTILS.build(dict(type='IoUCost'))], batch._replace(**{name: mask}))


@pytest.mark.parametrize('ignored', [torch.rand(2, 5), torch.rand(2), [0.0, 0.0]])
def test_ignored_boxes_of_another_form_are_refused_by_name(ignored):
    assigner = TASK_UTILS.build(dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='IoUCost')))
    (predictions,), (gts,) = images((4, 3))
    with pytest.raises(ValueError, match='gt_instances_ignore.bboxes must be a tensor of shape'):
        assigner.assign(predictions, gts, gt_instances_ignore=InstanceData(bboxes=ignored, labels=torch.zeros(2)))


def test_a_cost_of_mmdet_reads_an_image_shape_with_channels():
    predictions, gts = images((4, 3))
    cost = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=[dict(type='BBoxL1Cost')])).match_costs[0]

    def one_by_one(**given) -> torch.Tensor:  # no type that is computed for a batch
        return cost(**given)

    found = [batch_cost([one_by_one], make_batch(predictions, gts, [dict(img_shape=s)])) for s in ((9, 7), (9, 7, 3))]
    assert torch.equal(*found)


def call(name: str, change, background_only: bool = False) -> None:
    """One step of a head on outputs and lists that ``change`` has made wrong."""
    head = heads.soft(name)
    gts, _, metas = heads.ground_truths(0, with_ignored=False)
    if background_only:  # no cost is computed that would complain first
        gts = [gt[:0] for gt in gts]
    outputs = list(heads.dense_outputs(head, 0)) if name in heads.DENSE else list(detr_outputs(head))
    given = change(dict(outputs=outputs, gts=gts, metas=metas, ignored=None))
    head.loss_by_feat(*given['outputs'], given['gts'], given['metas'], given['ignored'])


def detr_outputs(head: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 10, head.cls_out_channels), 0.2 + 0.3 * torch.rand(2, 3, 10, 4)


def changed(outputs, index: int, change):
    values = outputs[index]
    return [
        *outputs[:index],
        [change(values[0]), *values[1:]] if isinstance(values, list) else change(values),
        *outputs[index + 1 :],
    ]


def spoil(index: int, change):
    return lambda given: {**given, 'outputs': changed(given['outputs'], index, change)}


WRONG = {
    'integers': (spoil(0, lambda x: x.detach().int()), 'cls_scores.* must be a floating-point tensor'),
    'no tensor': (spoil(0, lambda x: x.tolist()), 'cls_scores.* must be a floating-point tensor .*got list'),
    'integer boxes': (spoil(1, lambda x: x.detach().int()), 'bbox_preds.* must be a floating-point tensor'),
    'dimensions': (spoil(0, lambda x: x[0]), 'cls_scores.* must have shape'),
    'more dimensions': (spoil(1, lambda x: x[None]), 'bbox_preds.* must have shape'),
    'channels, or images of DETR': (
        spoil(0, lambda x: torch.cat([x, x], 1)),
        'cls_scores.* must have shape|bbox_preds.* must have shape',
    ),
    'images of one level': (spoil(1, lambda x: x[:, :1] if len(x) == 2 else x[:1]), 'bbox_preds.* must have shape'),
    'ground truths': (lambda g: {**g, 'gts': g['gts'][:2]}, 'batch_gt_instances must be a list .* 3 images'),
    'metas': (lambda g: {**g, 'metas': g['metas'] * 2}, 'batch_img_metas must be a list .* 3 images'),
    'ignored': (lambda g: {**g, 'ignored': [None]}, 'batch_gt_instances_ignore must be a list .* 3 images'),
    'no img_shape': (lambda g: {**g, 'metas': [{}] * 3}, r"batch_img_metas\[0\] has no 'img_shape'"),
    'no boxes': (
        lambda g: {**g, 'gts': [InstanceData(labels=gt.labels) for gt in g['gts']]},
        'batch_gt_instances.bboxes must have shape',
    ),
}


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('name', ['GFLHead', 'ATSSHead', 'VFNetHead', 'RetinaHead', 'SSDHead', 'DETRHead'])
@pytest.mark.slow
def test_a_head_names_the_argument_of_a_wrong_type_shape_or_count(name, wrong):
    change, message = WRONG[wrong]
    with pytest.raises((TypeError, ValueError), match=message):
        call(name, change)


@pytest.mark.parametrize('name', ['RetinaHead', 'DETRHead'])
def test_infinite_scores_end_in_an_error_and_not_in_an_infinite_loss(name):
    def infinite(scores: torch.Tensor) -> torch.Tensor:
        scores = scores.detach().clone()
        scores[0, 0] = torch.inf
        return scores

    with pytest.raises(ValueError, match=rf'{name}: loss_cls.* not finite: cls_scores holds'):
        call(name, spoil(0, infinite), background_only=True)


def test_an_infinite_denoising_score_is_refused():
    head = heads.soft('DINOHead')
    boxes, labels = torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([1])
    gts = [InstanceData(bboxes=boxes, labels=labels)]
    scores, preds = torch.zeros(2, 1, 2, head.cls_out_channels), torch.full((2, 1, 2, 4), 0.5)
    arguments = gts, [dict(img_shape=(64, 64))], dict(num_denoising_queries=2, num_denoising_groups=1)
    assert all(torch.stack(list(losses)).isfinite().all() for losses in head.loss_dn(scores, preds, *arguments))
    scores[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match='DINOHead: dn_loss_cls.* all_layers_denoising_cls_scores holds'):
        head.loss_dn(scores, preds, *arguments)


def test_nan_scores_are_named_where_mmdets_assigner_leaves_them_to_scipy():
    assigner = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=[dict(type='ClassificationCost')]))
    predictions, gts = images((4, 3))
    predictions[0].scores[1] = torch.nan
    with pytest.raises(ValueError, match='HungarianAssigner failed .* scores of predictions hold 3 NaN or infinite'):
        batch_matcher(assigner).match_batch(make_batch(predictions, gts))
