"""Benchmark of Hungarian matching against mmdet's assigner, scipy and lapx."""

import argparse

import torch
from benchmark_inputs import random_images
from benchmark_measure import Calls, compare
from mmdet.registry import TASK_UTILS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uotod_mmdet.assigners.matching import Matching
from uotod_mmdet.costs import make_batch

DETR_COSTS = [
    dict(type='ClassificationCost', weight=1.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


def matching(args: argparse.Namespace) -> None:
    """Hungarian matching of 48 images with 300 predictions, costs included, against 48 calls of mmdet's assigner."""
    predictions, truths, metas = random_images(48, 300, 30, 80, args.device)
    stacked = {name: torch.stack([p[name] for p in predictions]) for name in ('scores', 'bboxes')}
    mmdets = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=DETR_COSTS))
    own = TASK_UTILS.build(dict(type='uotod_mmdet.HungarianAssigner', match_costs=DETR_COSTS))

    def one_by_one() -> list[Tensor]:
        return [mmdets.assign(p, t, img_meta=m).gt_inds for p, t, m in zip(predictions, truths, metas)]

    def batched() -> Matching:
        return own.match_batch(make_batch(stacked, truths, metas))

    plans, cost, _ = batched()
    assert cost is not None
    for gt_inds, plan in zip(one_by_one(), plans):
        matched, gts = plan[:, :-1].max(1)
        assert torch.equal(gt_inds, torch.where(matched > 0, gts + 1, 0))
    costs = [c[:, : len(t)].cpu().double().numpy() for c, t in zip(cost, truths)]
    calls: Calls = {
        'mmdet, 48 calls': one_by_one,
        'ours, one batch': batched,
        'scipy in a loop, costs given': lambda: [linear_sum_assignment(c) for c in costs],
    }
    try:
        from lap import lapjvx_batch

        padded = cost.cpu().double().transpose(1, 2).numpy()
        calls['lapx batch, costs given, padded'] = lambda: lapjvx_batch(padded, extend_cost=True)
    except ImportError:
        print('lapx is not installed: left out')
    compare('Hungarian matching of 48 images, N=300, M<=30, same assignment', calls, args)
