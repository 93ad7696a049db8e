"""gt_mass by decoder layer: many predictions of a ground truth in early layers, one in the last."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from test_plan_heads import dense_outputs, detr_outputs, ground_truths, head_config

from uotod_mmdet.costs import batch_cost, make_batch

MASSES = [4, 2, 1]


def head_with(name: str, **options):
    train_cfg = head_config(name).train_cfg
    costs = train_cfg.assigner.get('match_costs', [dict(type='IoUCost', iou_mode='giou')])
    train_cfg['assigner'] = dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=costs, **options)
    return MODELS.build({**head_config(name, train_cfg=train_cfg), 'type': f'uotod_mmdet.{name}'})


def matchings_of(head, *args):
    """What the head's assigner found, one entry for each of its batches."""
    seen, match_batch = [], head.matcher.match_batch
    head.matcher.match_batch = lambda *given: seen.append(match_batch(*given)) or seen[-1]
    gts, _, metas = ground_truths(0, with_ignored=False)
    extra = (
        dict(dn_meta=dict(num_denoising_queries=12, num_denoising_groups=1)) if 'DINO' in type(head).__name__ else {}
    )
    losses = head.loss_by_feat(*args, gts, metas, **extra)
    return seen, losses


@pytest.mark.parametrize('name', ['DETRHead', 'DeformableDETRHead', 'DINOHead'])
def test_each_layer_has_its_mass_and_the_encoder_that_of_the_last(name):
    head = head_with(name, gt_mass=MASSES, tol=1e-4, num_iter=2000)
    scores, boxes = detr_outputs(head.cls_out_channels, 0)
    args = [scores, boxes.sigmoid()]
    if name != 'DETRHead':
        args += [args[0][0], args[1][0]]
    seen, losses = matchings_of(head, *args)
    columns = [found.plan[:, :, :-1].sum(1) for found in seen]
    # Images have 6, 0 and 3 ground truths; the batch is layer after layer.
    real = torch.tensor([[1.0] * 6, [0.0] * 6, [1.0] * 3 + [0.0] * 3])
    of_layers = max(columns, key=len).view(3, 3, 6)
    for mass, found in zip(MASSES, of_layers):
        torch.testing.assert_close(found, mass * real, rtol=1e-3, atol=1e-4)
    if name != 'DETRHead':
        torch.testing.assert_close(min(columns, key=len), real, rtol=1e-3, atol=1e-4)
    assert float(losses['matched_mass']) == pytest.approx(sum(MASSES) * 9 / 9, rel=1e-2)


def test_a_hard_reading_is_the_mixed_matching_of_align_detr():
    """Hungarian matching with k copies of each ground truth, by scipy."""
    generator = torch.Generator().manual_seed(0)
    layers, preds, gts = 3, 30, 5
    boxes = torch.rand(layers, preds, 4, generator=generator, dtype=torch.float64) * 50
    boxes[..., 2:] += boxes[..., :2] + 5
    truth = torch.rand(gts, 4, generator=generator, dtype=torch.float64) * 50
    truth[:, 2:] += truth[:, :2] + 5
    batch = make_batch(
        dict(bboxes=boxes), [InstanceData(bboxes=truth, labels=torch.zeros(gts, dtype=torch.long))], repeats=layers
    )
    costs = [dict(type='IoUCost', iou_mode='giou')]
    assigner = dict(type='uotod_mmdet.BalancedSinkhornAssigner', match_costs=costs, reg=1e-3, tol=1e-6, num_iter=5000)
    plan = TASK_UTILS.build(dict(assigner, gt_mass=MASSES, hard=True)).match_batch(batch).plan
    cost = batch_cost([TASK_UTILS.build(dict(costs[0]))], batch)
    for layer, copies in enumerate(MASSES):
        rows, columns = linear_sum_assignment(np.tile(cost[layer].numpy(), copies))
        expected = torch.zeros(preds, gts, dtype=torch.float64)
        expected[rows, columns % gts] = 1
        torch.testing.assert_close(plan[layer, :, :-1], expected)


def test_a_number_for_all_layers_is_the_list_of_that_number():
    scores, boxes = detr_outputs(6, 0)
    plans = []
    for mass in (2.0, [2, 2, 2]):
        head = head_with('DETRHead', gt_mass=mass)
        plans.append(matchings_of(head, scores, boxes.sigmoid())[0][0].plan)
    assert torch.equal(*plans)


def test_masses_that_do_not_fit_the_layers_are_refused():
    scores, boxes = detr_outputs(6, 0, num_layers=2)
    with pytest.raises(ValueError, match=r'gt_mass=\[4.0, 2.0, 1.0\] holds one number for each .* this head has 2'):
        matchings_of(head_with('DETRHead', gt_mass=MASSES), scores, boxes.sigmoid())
    dense = head_with('GFLHead', gt_mass=MASSES)
    with pytest.raises(ValueError, match='one number for each decoder layer, but this head has none'):
        matchings_of(dense, *dense_outputs(dense, 0))
    gts, _, metas = ground_truths(0, with_ignored=False)
    one = InstanceData(scores=scores[0, 0].detach(), bboxes=torch.rand(40, 4).cumsum(1) * 50)
    with pytest.raises(ValueError, match='but this head has none'):  # mmdet's heads match one layer at a time
        dense.assigner.assign(one, gts[0], metas[0])
    with pytest.raises(ValueError, match=r"gt_mass=\[4.0, 2.0, 1.0\] needs a head's decoder layers"):
        dense.assigner.match(torch.rand(1, 4, 2))
    for bad, message in (([], 'must hold one number for each'), ([2, 0], r'gt_mass\[1\] must be positive')):
        with pytest.raises(ValueError, match=message):
            head_with('DETRHead', gt_mass=bad)
