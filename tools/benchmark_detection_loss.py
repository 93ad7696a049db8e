"""Benchmark of DetectionLoss against its dense formula and uotod's own code."""

import argparse
import sys
import types
from collections.abc import Callable
from typing import Optional

import torch
import torch.nn.functional as F
from benchmark_inputs import random_boxes
from benchmark_measure import Calls, compare
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import make_batch
from uotod_mmdet.registry import MODELS


def detection_case(batch: int, preds: int, gts: int, classes: int, device: str) -> tuple[torch.nn.Module, dict, dict]:
    """A DetectionLoss, predictions and targets."""
    generator = torch.Generator().manual_seed(0)
    input = dict(
        pred_logits=torch.randn(batch, preds, classes + 1, generator=generator),
        pred_boxes=random_boxes(batch, preds, generator=generator),
    )
    target = dict(
        labels=torch.randint(0, classes, (batch, gts), generator=generator),
        boxes=random_boxes(batch, gts, generator=generator),
    )
    costs = [
        dict(type='ClassificationCost'),
        dict(type='BBoxL1Cost', weight=5.0),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    config = dict(
        type='DetectionLoss',
        loss_cls=dict(type='CrossEntropyLoss'),
        loss_bbox=[dict(type='L1Loss'), dict(type='GIoULoss')],
        assigner=dict(type='UnbalancedSinkhornAssigner', match_costs=costs),
    )
    input = {name: value.to(device).requires_grad_() for name, value in input.items()}
    return MODELS.build(config), input, {name: value.to(device) for name, value in target.items()}


def match_case(module: torch.nn.Module, input: dict, target: dict) -> Tensor:
    """The plan of a :func:`detection_case`."""
    truths = [InstanceData(labels=labels, bboxes=boxes) for labels, boxes in zip(target['labels'], target['boxes'])]
    predictions = dict(scores=input['pred_logits'], bboxes=input['pred_boxes'])
    return module.matcher.match_batch(make_batch(predictions, truths, [dict(img_shape=(1, 1))] * len(truths))).plan


def dense_detection_loss(input: dict, target: dict, plan: Tensor) -> Tensor:
    """DetectionLoss with softmax cross-entropy, L1 and GIoU, on tensors of predictions x ground truths x classes."""
    logits, boxes, labels, gt_boxes = input['pred_logits'], input['pred_boxes'], target['labels'], target['boxes']
    preds, columns, gts = logits.size(1), logits.size(2), labels.size(1)
    all_labels = torch.cat([labels, torch.full_like(labels[:, :1], columns - 1)], 1)
    rows = logits[:, :, None].expand(-1, -1, gts + 1, -1).reshape(-1, columns)
    cls = F.cross_entropy(rows, all_labels[:, None].expand(-1, preds, -1).reshape(-1), reduction='none')
    pair_boxes = boxes[:, :, None].expand(-1, -1, gts, -1).reshape(-1, 4)
    pair_gts = gt_boxes[:, None].expand(-1, preds, -1, -1).reshape(-1, 4)
    low, high = torch.maximum(pair_boxes, pair_gts), torch.minimum(pair_boxes, pair_gts)
    overlap = (high[:, 2:] - low[:, :2]).clamp(min=0).prod(1)
    hull = (low[:, 2:] - high[:, :2]).prod(1)
    union = (pair_boxes[:, 2:] - pair_boxes[:, :2]).prod(1) + (pair_gts[:, 2:] - pair_gts[:, :2]).prod(1) - overlap
    loc = (pair_boxes - pair_gts).abs().sum(1) + 1 - overlap / union + (hull - union) / hull
    matched = plan[:, :, :-1]
    return (plan * cls.view(plan.shape)).sum() / plan.sum() + (matched * loc.view(matched.shape)).sum() / matched.sum()


def uotod_detection_loss(input: dict, target: dict) -> Optional[Callable[[], Tensor]]:
    """uotod's own DetectionLoss with Sinkhorn matching, if it is installed."""
    # Importing uotod 0.3.post2 from PyPI fails on a sample image that it lacks; the loss needs neither that nor plots.
    for name, needed in (('uotod.sample', ()), ('uotod.plot', ('image_with_boxes', 'match', 'cost'))):
        stand_in = sys.modules.setdefault(name, types.ModuleType(name))
        vars(stand_in).update(dict.fromkeys(needed))
    try:
        from uotod.loss import DetectionLoss, GIoULoss, NegativeProbLoss
        from uotod.match import BalancedSinkhorn
    except ImportError as error:
        print(f'uotod is left out: {error}')
        return None
    none = dict(reduction='none')
    matching_method = BalancedSinkhorn(
        cls_match_module=NegativeProbLoss(**none), loc_match_module=torch.nn.L1Loss(**none), background=True
    )
    module = DetectionLoss(
        cls_loss_module=torch.nn.CrossEntropyLoss(**none),
        loc_loss_module=GIoULoss(**none),
        matching_method=matching_method,
        bg_class_position='last',
    )
    masked = dict(target, mask=torch.ones_like(target['labels'], dtype=torch.bool))
    return lambda: module(input, masked)


def detection_loss(args: argparse.Namespace) -> None:
    """DetectionLoss, matching included, against the dense formula on a plan that is given to it."""
    size = (8, 900, 50, 80)
    module, input, target = detection_case(*size, args.device)
    plan = match_case(module, input, target)
    sparse, dense = lambda: module(input, target), lambda: dense_detection_loss(input, target, plan)
    torch.testing.assert_close(sparse(), dense(), rtol=1e-3, atol=0)
    calls: Calls = {
        'dense formula, plan given': lambda: torch.autograd.grad(dense(), list(input.values())),
        'DetectionLoss, matching included': lambda: torch.autograd.grad(sparse(), list(input.values())),
    }
    theirs = uotod_detection_loss(input, target)
    if theirs:
        calls['uotod, matching included'] = lambda: torch.autograd.grad(theirs(), list(input.values()))
    compare('DetectionLoss, B={} N={} M={} C={}, forward + backward'.format(*size), calls, args)
