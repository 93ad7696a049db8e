"""Benchmark of matching points: RTMDet's and YOLOX's, against mmdet's assigners."""

import argparse
from collections.abc import Callable

import torch
from benchmark_inputs import random_boxes
from benchmark_measure import Calls, compare
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.costs import make_batch

TRANSPORT = dict(gt_mass='dynamic_k', reg=0.1, reg_pred=None, reg_target=100.0, normalize_cost=False, tol=0.05)
BOX_COSTS = [dict(type='uotod_mmdet.LogIoUCost', weight=3.0), dict(type='uotod_mmdet.InsideGTCost', weight=200.0)]
SOFT_LABEL = [dict(type='uotod_mmdet.SoftLabelCost'), dict(type='uotod_mmdet.SoftCenterCost')]
SIM_OTA = [dict(type='uotod_mmdet.BinaryCrossEntropyCost')]


def images(count: int, gts: int, classes: int, device: str) -> tuple[dict, list[InstanceData], list[dict]]:
    """Predictions at the 8400 points of images of 640 x 640: boxes near one of ``gts`` ground truths, or anywhere."""
    generator = torch.Generator().manual_seed(0)
    levels = MlvlPointGenerator([8, 16, 32], offset=0).grid_priors(
        [(80, 80), (40, 40), (20, 20)], device='cpu', with_stride=True
    )
    priors, truths, bboxes = torch.cat(levels), [], []
    for _ in range(count):
        gt_boxes = random_boxes(gts, generator=generator) * 640
        truths.append(
            InstanceData(bboxes=gt_boxes, labels=torch.randint(0, classes, (gts,), generator=generator)).to(device)
        )
        distances = priors[:, 2:].repeat(1, 2) * (0.5 + 3 * torch.rand(len(priors), 4, generator=generator))
        boxes = torch.cat([priors[:, :2] - distances[:, :2], priors[:, :2] + distances[:, 2:]], 1)
        near = torch.randint(0, gts, (len(priors) // 4,), generator=generator)
        boxes[::4] = gt_boxes[near] + 5 * torch.randn(len(near), 4, generator=generator)
        bboxes.append(boxes)
    scores = torch.randn(count, len(priors), classes, generator=generator) - 3
    predictions = dict(scores=scores, bboxes=torch.stack(bboxes), priors=priors.expand(count, -1, -1))
    metas = [dict(img_shape=(640, 640))] * count
    return {name: values.to(device) for name, values in predictions.items()}, truths, metas


def one_by_one(assigner: dict, predictions: dict, truths: list[InstanceData]) -> Callable[[], list[Tensor]]:
    """Calls of an assigner of mmdet's, as its heads call it."""
    built = TASK_UTILS.build(assigner)

    def call() -> list[Tensor]:
        found = []
        for index, truth in enumerate(truths):
            image = InstanceData(**{name: values[index] for name, values in predictions.items()})
            found.append(built.assign(image, truth).gt_inds)
        return found

    return call


def batched(assigner: dict, predictions: dict, truths: list, metas: list, score_format: str) -> Callable[[], object]:
    """The whole plan of all images as one batch."""
    built = TASK_UTILS.build(assigner)

    def call() -> object:
        batch = make_batch(predictions, truths, metas, prior_format='point', score_format=score_format)
        return built.match_batch(batch)

    return call


def points(args: argparse.Namespace) -> None:
    """Matching of RTMDet's and YOLOX's points: the whole plan against mmdet's dynamic k; few rounds of long calls."""
    args = argparse.Namespace(**{**vars(args), 'repeats': min(args.repeats, 3)})
    for count, gts in ((8, 100), (4, 500)):
        predictions, truths, metas = images(count, gts, 80, args.device)
        probabilities = {**predictions, 'scores': predictions['scores'].sigmoid()}
        for head, stock, costs, given, score_format in (
            ('RTMDet', 'DynamicSoftLabelAssigner', SOFT_LABEL, predictions, 'logits'),
            ('YOLOX', 'SimOTAAssigner', SIM_OTA, probabilities, 'probabilities'),
        ):
            ours = dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', match_costs=[*costs, *BOX_COSTS], **TRANSPORT)
            calls: Calls = {
                f'mmdet, {stock}, {count} calls': one_by_one(dict(type=stock), given, truths),
                'ours, whole plan, one batch': batched(ours, given, truths, metas, score_format),
            }
            compare(f'Matching of {head}, batch {count}, 8400 points, {gts} ground truths', calls, args)
