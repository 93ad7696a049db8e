"""Plans and hard readings of the assigners, one image at a time."""

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps
from mmengine.structures import InstanceData

ASSIGNERS = ['HungarianAssigner', 'BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner']
DETR_COSTS = [
    dict(type='ClassificationCost', weight=1.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
META = dict(img_shape=(100, 200), img_path='folder/cat.jpg')


def build(name, **kwargs):
    kwargs.setdefault('match_costs', DETR_COSTS)
    return TASK_UTILS.build(dict(type=f'uotod_mmdet.{name}', **kwargs))


def boxes(count, generator):
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 60.0])
    return torch.cat([corners, corners + 5 + 40 * torch.rand(count, 2, generator=generator)], 1)


def detr_image(num_preds=30, num_gts=5, num_classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pred = InstanceData(
        bboxes=boxes(num_preds, generator), scores=torch.randn(num_preds, num_classes + 1, generator=generator)
    )
    gt = InstanceData(
        bboxes=boxes(num_gts, generator), labels=torch.randint(0, num_classes, (num_gts,), generator=generator)
    )
    return pred, gt


@pytest.mark.parametrize('num_gts', [0, 1, 5, 29, 30, 40])
def test_hungarian_assigns_as_mmdets_own(num_gts):
    stock = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=DETR_COSTS))
    pred, gt = detr_image(num_gts=num_gts)
    expected = stock.assign(pred, gt, META)
    result = build('HungarianAssigner').assign(pred, gt, img_meta=META)
    assert torch.equal(result.gt_inds, expected.gt_inds)
    assert torch.equal(result.labels, expected.labels)
    assert result.num_gts == num_gts


@pytest.mark.parametrize('name', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
def test_sinkhorn_with_little_regularisation_reads_as_hungarian(name):
    kwargs = dict(reg_pred=None, reg_target=None) if name.startswith('Un') else {}
    pred, gt = detr_image()
    sinkhorn = build(name, reg=2e-3, num_iter=20000, tol=1e-4, **kwargs).assign(pred, gt, META)
    hungarian = build('HungarianAssigner').assign(pred, gt, META)
    assert torch.equal(sinkhorn.gt_inds, hungarian.gt_inds)


def test_hungarian_beats_every_other_one_to_one_matching_on_the_papers_figure():
    cost = torch.tensor([[0.61, 0.96], [1.34, 0.88], [0.88, 0.89], [0.40, 0.65], [1.11, 0.73]])
    plan = build('HungarianAssigner').match(cost[None])[0]
    assert plan.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize('name', ASSIGNERS)
def test_plan_rows_are_whole_and_columns_hold_their_mass(name):
    cost = torch.rand(3, 40, 6, dtype=torch.float64)
    gt_mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [False] * 6])
    kwargs = {}
    if name != 'HungarianAssigner':
        kwargs.update(tol=1e-9, num_iter=5000)
    if name == 'UnbalancedSinkhornAssigner':
        kwargs.update(reg_pred=None, reg_target=1e6)
    plan = build(name, **kwargs).match(cost, gt_mask)
    assert torch.allclose(plan.sum(2), torch.ones(3, 40, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(plan[..., :6].sum(1), gt_mask.double(), atol=1e-4)
    assert plan[..., :6].masked_select(~gt_mask[:, None].expand(-1, 40, -1)).eq(0).all()


@pytest.mark.parametrize('name', ASSIGNERS)
@pytest.mark.parametrize('num_preds, num_gts', [(3, 7), (1, 1), (5, 0), (0, 4), (0, 0)])
def test_odd_sizes_have_no_negative_mass_and_finite_plans(name, num_preds, num_gts):
    plan = build(name).match(torch.rand(2, num_preds, num_gts))
    assert plan.shape == (2, num_preds, num_gts + 1)
    assert torch.isfinite(plan).all() and (plan >= 0).all()
    if num_gts == 0:
        assert torch.allclose(plan, torch.ones_like(plan), atol=1e-3)
    if num_gts > num_preds > 0:
        assert plan[..., -1].abs().max() < 1e-6  # no mass is left for the background


@pytest.mark.parametrize('name', ASSIGNERS)
def test_an_image_is_matched_as_if_alone(name):
    cost = torch.rand(4, 50, 8, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None, None]
    counts = [8, 3, 1, 0]
    gt_mask = torch.arange(8) < torch.tensor(counts)[:, None]
    assigner = build(name)
    together = assigner.match(cost, gt_mask)
    for index, count in enumerate(counts):
        alone = assigner.match(cost[index : index + 1, :, :count])[0]
        expected = torch.cat([alone[:, :count], torch.zeros(50, 8 - count), alone[:, count:]], 1)
        assert (together[index] - expected).abs().max() < 1e-9


def test_gt_mass_gives_a_ground_truth_that_many_predictions():
    pred, gt = detr_image(num_preds=60, num_gts=4)
    counts = torch.bincount(build('BalancedSinkhornAssigner', reg=0.005, gt_mass=7).assign(pred, gt, META).gt_inds)
    assert counts.sum() == 60
    assert ((counts[1:] >= 5) & (counts[1:] <= 9)).all()


def test_small_reg_target_leaves_far_ground_truths_without_mass():
    cost = torch.full((1, 20, 2), 5.0)
    cost[0, :4, 0] = 0
    plan = build(
        'UnbalancedSinkhornAssigner', reg=0.05, reg_pred=None, reg_target=0.1, background_cost=1.0, normalize_cost=False
    ).match(cost)[0]
    assert plan[:4, 0].min() > 0.9
    assert plan[:, 1].max() < 1e-6


def test_without_background_all_mass_goes_to_ground_truths():
    plan = build('BalancedSinkhornAssigner', background=False, tol=1e-6).match(torch.rand(1, 10, 3))[0]
    assert plan[:, 3].eq(0).all()
    assert torch.allclose(plan.sum(1), torch.ones(10), atol=1e-4)


def test_every_ground_truth_keeps_a_prediction_unless_told_otherwise():
    gt = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 21], [90, 40, 95, 45]]), labels=torch.zeros(3).long()
    )
    priors = torch.tensor([[0.0, 0, 20, 20], [2, 0, 22, 20], [150, 0, 170, 20], [80, 30, 110, 60]])
    kwargs = dict(
        match_costs=dict(type='IoUCost', iou_mode='iou'),
        background_cost=-0.5,
        reg=0.02,
        reg_pred=1e3,
        reg_target=1e-2,
        normalize_cost=False,
    )
    pred = InstanceData(priors=priors)
    closest = build('UnbalancedSinkhornAssigner', keep_every_gt=False, **kwargs).assign(pred, gt)
    kept = build('UnbalancedSinkhornAssigner', **kwargs).assign(pred, gt)
    assert 3 not in closest.gt_inds  # IoU below the background's 0.5
    assert set(kept.gt_inds.tolist()) == {0, 1, 2, 3}
    assert kept.gt_inds[2] == 0


@pytest.mark.parametrize('name', ASSIGNERS)
def test_overlaps_and_labels_are_those_of_the_matched_ground_truth(name):
    pred, gt = detr_image()
    result = build(name).assign(pred, gt, META)
    matched = result.gt_inds > 0
    overlaps = bbox_overlaps(pred.bboxes, gt.bboxes)
    assert matched.any() and not matched.all()
    columns = result.gt_inds[matched] - 1
    assert torch.allclose(result.max_overlaps[matched], overlaps[matched, columns])
    assert torch.equal(result.labels[matched], gt.labels[columns])
    assert result.max_overlaps[~matched].eq(0).all() and result.labels[~matched].eq(-1).all()


def test_all_call_forms_of_mmdets_heads_mean_the_same():
    pred, gt = detr_image()
    pred.priors = pred.bboxes
    ignore = InstanceData(bboxes=torch.tensor([[0.0, 0, 200, 100]]))
    assigner = build('HungarianAssigner', match_costs=dict(type='IoUCost'))
    forms = [
        assigner.assign(pred_instances=pred, num_level_priors=[30], gt_instances=gt, gt_instances_ignore=ignore),
        assigner.assign(pred, [30], gt, ignore),
        assigner.assign(pred, gt, ignore),
        assigner.assign(pred_instances=pred, gt_instances=gt, img_meta=META, gt_instances_ignore=ignore),
    ]
    assert (forms[0].gt_inds == -1).any()
    assert all(torch.equal(form.gt_inds, forms[0].gt_inds) for form in forms)
    without = [assigner.assign(pred, [30], gt, None), assigner.assign(pred, gt, None), assigner.assign(pred, gt, META)]
    assert all((form.gt_inds >= 0).all() for form in without)


def test_unmatched_predictions_on_ignored_boxes_take_part_in_no_loss():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([2]))
    pred = InstanceData(priors=torch.tensor([[0.0, 0, 10, 10], [52, 52, 60, 60], [45, 45, 55, 55], [100, 0, 110, 10]]))
    crowd = InstanceData(bboxes=torch.tensor([[0.0, 0, 70, 70]]))
    costs = dict(type='IoUCost')
    assert build('HungarianAssigner', match_costs=costs).assign(pred, gt, crowd).gt_inds.tolist() == [1, -1, -1, 0]
    off = build('HungarianAssigner', match_costs=costs, ignore_iof_thr=-1).assign(pred, gt, crowd)
    assert off.gt_inds.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize('name', ASSIGNERS)
def test_boxes_without_area_are_matched_to_nothing(name):
    pred, gt = detr_image(num_gts=4)
    gt.bboxes[1] = torch.tensor([50.0, 20, 40, 60])
    result = build(name).assign(pred, gt, META)
    assert 2 not in result.gt_inds
    assert {1, 3, 4} <= set(result.gt_inds.tolist())


def test_mmdets_box_type_is_read():
    pred, gt = detr_image()
    expected = build('HungarianAssigner').assign(pred, gt, META).gt_inds
    wrapped = InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels)
    assert torch.equal(build('HungarianAssigner').assign(pred, wrapped, META).gt_inds, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ASSIGNERS)
def test_half_precision_is_solved_in_float32(name, dtype):
    cost = torch.rand(2, 30, 4).to(dtype)
    plan = build(name).match(cost)
    assert plan.dtype == dtype
    assert torch.equal(plan, build(name).match(cost.float()).to(dtype))


def test_point_priors_are_told_from_anchors():
    points = torch.tensor([[4.0, 4, 8, 8], [12, 4, 8, 8], [16, 16, 32, 32]])
    anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 32, 32]])
    gt = InstanceData(bboxes=torch.tensor([[6.0, 0, 14, 9]]), labels=torch.tensor([0]))
    for cost in (dict(type='uotod_mmdet.PriorCenterCost'), dict(type='uotod_mmdet.InsideGTCost', center_radius=1.0)):
        cost = TASK_UTILS.build(cost)
        assert torch.allclose(cost(InstanceData(priors=points), gt), cost(InstanceData(priors=anchors), gt))
    center = TASK_UTILS.build(dict(type='uotod_mmdet.PriorCenterCost', weight=2.0))
    distance = 2 * torch.tensor([[(36 + 0.25) ** 0.5 / 8], [(4 + 0.25) ** 0.5 / 8], [(36 + 132.25) ** 0.5 / 32]])
    assert torch.allclose(center(InstanceData(priors=points), gt), distance)
    inside = TASK_UTILS.build(dict(type='uotod_mmdet.InsideGTCost', weight=7.0))
    assert inside(InstanceData(priors=points), gt).flatten().tolist() == [7, 0, 7]


# Bad input


@pytest.mark.parametrize('name', ASSIGNERS)
def test_non_finite_prediction_is_named_with_image_and_cost(name):
    pred, gt = detr_image()
    pred.bboxes[3, 0] = float('nan')
    with pytest.raises(ValueError, match=r'BBoxL1Cost is not finite at 5 of 150 pairs .* folder/cat.jpg.*clip_grad'):
        build(name).assign(pred, gt, META)


@pytest.mark.parametrize('name', ASSIGNERS)
def test_non_finite_cost_matrix_names_the_image_of_the_batch(name):
    cost = torch.rand(3, 10, 4)
    cost[1, 2:5, 0] = float('inf')
    cost[2, 0, 3] = float('nan')
    gt_mask = torch.ones(3, 4, dtype=torch.bool)
    gt_mask[2, 3] = False  # padding may hold anything
    with pytest.raises(ValueError, match='not finite at 3 of 40 pairs of image 1 '):
        build(name).match(cost, gt_mask)
    cost[1] = 0
    assert torch.isfinite(build(name).match(cost, gt_mask)).all()


def test_labels_that_are_no_class_are_named():
    pred, gt = detr_image(num_classes=7)
    for label in (8, -1):
        gt.labels[0] = label
        with pytest.raises(ValueError, match=f'labels holds .*{label}.* 8 classes.*num_classes'):
            build('HungarianAssigner').assign(pred, gt, META)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(reg=0), 'reg must be positive, got 0'),
        (dict(reg=-1.0), 'reg must be positive'),
        (dict(tol=0.0), 'tol must be positive'),
        (dict(num_iter=0), 'num_iter must be positive'),
        (dict(gt_mass=-3), 'gt_mass must be positive'),
        (dict(reg_pred=-1.0), 'reg_pred must be >= 0'),
        (dict(reg_target=float('nan')), 'reg_target must be >= 0'),
        (dict(match_costs=[]), 'match_costs is empty'),
        (dict(box_source='boxes'), "box_source must be one of .* got 'boxes'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build('UnbalancedSinkhornAssigner', **kwargs)


def test_wrong_shapes_are_named():
    assigner = build('BalancedSinkhornAssigner')
    with pytest.raises(ValueError, match=r'cost must have shape \(B, N, M\), got \(4, 3\)'):
        assigner.match(torch.rand(4, 3))
    with pytest.raises(ValueError, match=r'gt_mask must be bool of shape \(2, 3\).* got torch.bool of shape \(2, 4\)'):
        assigner.match(torch.rand(2, 5, 3), torch.ones(2, 4, dtype=torch.bool))


def test_costs_on_priors_say_so_where_a_head_has_none():
    pred, gt = detr_image()
    with pytest.raises(ValueError, match='PriorCenterCost needs priors.*DETRHead'):
        build('HungarianAssigner', match_costs=dict(type='uotod_mmdet.PriorCenterCost')).assign(pred, gt, META)
    with pytest.raises(ValueError, match="box_source='priors' does not fit"):
        build('HungarianAssigner', box_source='priors').assign(pred, gt, META)


def test_misspelt_names_are_answered_with_the_right_ones():
    with pytest.raises(TypeError, match="no argument 'match_cost'; did you mean 'match_costs'"):
        TASK_UTILS.build(dict(type='uotod_mmdet.HungarianAssigner', match_cost=DETR_COSTS))
    with pytest.raises(TypeError, match="no argument 'reg_targets'; did you mean 'reg_target'"):
        build('UnbalancedSinkhornAssigner', reg_targets=1.0)
    with pytest.raises(TypeError, match="BalancedSinkhornAssigner has no argument 'reg_pred'"):
        build('BalancedSinkhornAssigner', reg_pred=1.0)
    with pytest.raises(KeyError, match="did you mean 'UnbalancedSinkhornAssigner'"):
        build('UnbalancedSinkhornAsigner')
