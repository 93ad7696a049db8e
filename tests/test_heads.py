"""mmdet's heads, and ours in their place, built from mmdet's configs, train with our assigners."""

import pytest
import torch
from mmengine.structures import InstanceData
from tiny_models import (
    CONFIGS,
    DENSE,
    MORE_QUERY_BASED,
    PREDICTION_AWARE,
    QUERY_BASED,
    build,
    images_and_samples,
    loss_of,
    tiny_config,
)

PRIOR_COSTS = [
    dict(type='IoUCost', iou_mode='giou', weight=1.0),
    dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
    dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
]
QUERY_COSTS = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
COSTS = {
    **dict.fromkeys(DENSE, PRIOR_COSTS),
    **dict.fromkeys(PREDICTION_AWARE, [dict(type='FocalLossCost', weight=1.0), *PRIOR_COSTS]),
    **dict.fromkeys((*QUERY_BASED, *MORE_QUERY_BASED), QUERY_COSTS),
}
DENSE_MASS = dict(gt_mass=5, reg=0.1, normalize_cost=False, tol=0.05)
ONE_TO_ONE = dict(reg=0.02)


def assigner(name: str, head: str) -> dict:
    cfg = dict(type=f'uotod_mmdet.{name}', match_costs=COSTS[head])
    if name != 'HungarianAssigner':
        cfg.update(DENSE_MASS if COSTS[head] is not QUERY_COSTS else ONE_TO_ONE)
    if name == 'UnbalancedSinkhornAssigner':
        cfg.update(reg_pred=None, reg_target=1.0)
    return cfg


def image_size(head: str) -> int:
    return 300 if head == 'SSDHead' else 128


@pytest.mark.slow
@pytest.mark.parametrize('name', ['HungarianAssigner', 'BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
@pytest.mark.parametrize('head', CONFIGS)
def test_stock_head_does_a_training_step(head, name):
    detector = build(tiny_config(head, assigner(name, head)))
    assert type(detector.bbox_head).__module__.startswith('mmdet.')
    ours, results = detector.bbox_head.assigner, []
    ours.assign = lambda *args, **kwargs: results.append(type(ours).assign(ours, *args, **kwargs)) or results[-1]
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    loss = loss_of(detector, images_and_samples((3, 0), image_size(head)))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    matched = [set(result.gt_inds.tolist()) for result in results]
    assert {0, 1, 2, 3} in matched  # every ground truth, and the background
    assert matched[-1] == ({0} if head != 'YOLOXHead' else {0, 1, 2, 3})  # YOLOXHead does not ask about empty images


OTHER_STRATEGIES = {
    'ClosestPredictionAssigner': {},
    'ClosestTargetAssigner': dict(background_cost=0.5),
    'SoftMinAssigner': dict(source='prediction', background_cost=0.5),
    'WeightedSumAssigner': dict(
        strategies=[dict(type='uotod_mmdet.HungarianAssigner'), dict(type='uotod_mmdet.ClosestTargetAssigner')]
    ),
    'OTAAssigner': {},
    'BalancedSinkhornAssigner': dict(gt_mass='dynamic_k', normalize_cost=False, reg=0.1),
    'HungarianAssigner': {},
    'UnbalancedSinkhornAssigner': {},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHER_STRATEGIES)
@pytest.mark.parametrize('head', ['GFLHead', 'RetinaHead', 'YOLOXHead', 'DETRHead'])
def test_every_strategy_trains_a_stock_head_with_ignored_boxes_and_an_empty_image(head, name):
    config = dict(type=f'uotod_mmdet.{name}', **OTHER_STRATEGIES[name])
    if name != 'OTAAssigner':
        config['match_costs'] = COSTS[head]
    detector = build(tiny_config(head, config))
    ours, results = detector.bbox_head.assigner, []
    ours.assign = lambda *args, **kwargs: results.append(type(ours).assign(ours, *args, **kwargs)) or results[-1]
    batch = images_and_samples((3, 0, 2))
    batch['data_samples'][0].ignored_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 128, 60]]), labels=torch.tensor([0])
    )
    loss = loss_of(detector, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    assert {1, 2, 3} <= set(results[0].gt_inds.tolist())
    if head != 'DETRHead':  # which does not hand ignored boxes over
        assert -1 in results[0].gt_inds
    assert -1 not in results[-1].gt_inds


@pytest.mark.slow
@pytest.mark.parametrize(
    'head, name, lr',
    [
        # Not GFLHead: it weighs box losses by predicted scores, so its loss is near its least before training.
        ('ATSSHead', 'UnbalancedSinkhornAssigner', 3e-3),
        ('VFNetHead', 'UnbalancedSinkhornAssigner', 3e-3),
        ('RetinaHead', 'BalancedSinkhornAssigner', 3e-3),
        ('YOLOXHead', 'UnbalancedSinkhornAssigner', 3e-3),
        ('DETRHead', 'HungarianAssigner', 1e-3),
    ],
)
def test_a_head_of_each_family_overfits_two_images(head, name, lr):
    model = tiny_config(head, assigner(name, head))
    for part in ('encoder', 'decoder'):
        if part in model:
            for key in ('self_attn_cfg', 'cross_attn_cfg'):
                model[part].layer_cfg.get(key, {}).pop('dropout', None)
            model[part].layer_cfg.ffn_cfg.ffn_drop = 0.0
    detector = build(model)
    batch = images_and_samples((3, 2), image_size(head))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr)
    history = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = loss_of(detector, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append(loss.item())
    assert min(history[-5:]) < 0.5 * history[0], history


@pytest.mark.slow
@pytest.mark.parametrize('head', ['GFLHead', 'RetinaHead', 'YOLOXHead', 'DETRHead'])
def test_images_without_ground_truth_give_a_finite_loss(head):
    detector = build(tiny_config(head, assigner('UnbalancedSinkhornAssigner', head)))
    loss = loss_of(detector, images_and_samples((0, 0), image_size(head)))
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.parametrize('head, image', [('YOLOXHead', 'an image'), ('DETRHead', 'image0.jpg')])
def test_nan_in_predictions_is_named_before_any_loss(head, image):
    detector = build(tiny_config(head, assigner('UnbalancedSinkhornAssigner', head)))
    with torch.no_grad():
        next(p for n, p in detector.bbox_head.named_parameters() if 'cls' in n).fill_(float('nan'))
    with pytest.raises(ValueError, match=f'FocalLossCost is not finite at .* pairs .* {image}'):
        loss_of(detector, images_and_samples((3, 2), image_size(head)))


def test_labels_outside_the_classes_are_named():
    detector = build(tiny_config('DETRHead', assigner('HungarianAssigner', 'DETRHead')))
    batch = images_and_samples((3,))
    batch['data_samples'][0].gt_instances.labels[0] = 17
    with pytest.raises(ValueError, match='labels holds .* 17, but the scores have .* num_classes'):
        loss_of(detector, batch)


def test_hungarian_gives_the_detr_loss_of_mmdets_own():
    batch = images_and_samples((3, 1, 0, 4))
    stock = tiny_config('DETRHead', dict(type='HungarianAssigner', match_costs=QUERY_COSTS))
    ours = tiny_config('DETRHead', dict(type='uotod_mmdet.HungarianAssigner', match_costs=QUERY_COSTS))
    losses = []
    for model in (stock, ours):
        detector = build(model, seed=3).eval()  # without dropout
        losses.append(loss_of(detector, batch))
    assert torch.equal(*losses)


def plan_config(head: str, name: str) -> dict:
    """A tiny detector with our head in the place of mmdet's."""
    model = tiny_config(head, assigner(name, head))
    model.bbox_head.type = f'uotod_mmdet.{model.bbox_head.type}'
    return model


STATISTICS = {'matched_mass', 'unmatched_gts', 'plan_entropy', 'sinkhorn_iters'}


@pytest.mark.slow
@pytest.mark.parametrize('head', [*DENSE, *QUERY_BASED, *MORE_QUERY_BASED])
def test_our_head_does_a_training_step_on_a_soft_plan(head):
    detector = build(plan_config(head, 'UnbalancedSinkhornAssigner'))
    batch = images_and_samples((3, 0, 2), image_size(head))
    batch['data_samples'][0].ignored_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 128, 60]]), labels=torch.tensor([0])
    )
    data = detector.data_preprocessor(dict(inputs=batch['inputs'], data_samples=batch['data_samples']), True)
    losses = detector(**data, mode='loss')
    total, logged = detector.parse_losses(losses)
    assert set(logged) > STATISTICS
    assert not any('loss' in name for name in STATISTICS)
    values = (value if isinstance(value, list) else [value] for name, value in losses.items() if 'loss' in name)
    summed = sum(entry.sum() for value in values for entry in value)
    torch.testing.assert_close(total, summed)
    total.backward()
    assert torch.isfinite(total)
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    missing = {name for name in trained if detector.get_parameter(name).grad is None}
    # As in mmdet: DINO and DAB-DETR have branches that only later layers or prediction use.
    assert all('embed' in name or 'branches' in name or 'ref_point' in name for name in missing), missing
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize('head', [*DENSE, 'DETRHead'])
@pytest.mark.slow
def test_our_head_predicts_as_mmdets(head):
    if head == 'SSDHead':
        pytest.skip("mmdet 3.3's SSDHead cannot predict: it looks for a loss_cls that it does not have")
    batch = images_and_samples((3, 2), image_size(head))
    results = []
    for model in (tiny_config(head, assigner('HungarianAssigner', head)), plan_config(head, 'HungarianAssigner')):
        detector = build(model, seed=1).eval()
        data = detector.data_preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), False)
        results.append([sample.pred_instances for sample in detector(**data, mode='predict')])
    for stock, ours in zip(*results):
        assert torch.equal(stock.bboxes, ours.bboxes) and torch.equal(stock.scores, ours.scores)


@pytest.mark.slow
def test_ssd_with_our_head_predicts():
    detector = build(plan_config('SSDHead', 'HungarianAssigner')).eval()
    batch = images_and_samples((3,), 300)
    data = detector.data_preprocessor(dict(inputs=batch['inputs'], data_samples=batch['data_samples']), False)
    (sample,) = detector(**data, mode='predict')
    assert len(sample.pred_instances.bboxes)


@pytest.mark.slow
@pytest.mark.parametrize(
    'head, lr', [('GFLHead', 3e-3), ('ATSSHead', 3e-3), ('VFNetHead', 3e-3), ('RetinaHead', 3e-3), ('DETRHead', 1e-3)]
)
def test_our_head_overfits_two_images_on_a_soft_plan(head, lr):
    """What the detector finds in the end, which says more than a loss of a moving plan."""
    model = plan_config(head, 'BalancedSinkhornAssigner')
    for part in ('encoder', 'decoder'):
        if part in model:
            for key in ('self_attn_cfg', 'cross_attn_cfg'):
                model[part].layer_cfg.get(key, {}).pop('dropout', None)
            model[part].layer_cfg.ffn_cfg.ffn_drop = 0.0
    detector = build(model)
    batch = images_and_samples((3, 2), image_size(head))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr)
    history = []
    for _ in range(60):
        optimizer.zero_grad()
        data = detector.data_preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), True)
        losses = detector(**data, mode='loss')
        total, logged = detector.parse_losses(losses)
        total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append({name: value.item() for name, value in logged.items()})
    box_loss = 'loss_iou' if head == 'DETRHead' else 'loss_bbox'
    assert min(line[box_loss] for line in history[-5:]) < 0.6 * history[0][box_loss], history[:: len(history) - 1]
