"""Benchmark of the quality losses against mmdet's, and of those that mmdet lacks against our VarifocalLoss."""

import argparse
from functools import partial

import mmdet.models.losses as stock
import torch
from benchmark_measure import Calls, compare
from torch import Tensor

import uotod_mmdet.losses as ours


def losses(args: argparse.Namespace) -> None:
    """QFL, VFL at 67200 x 80, DFL at 40000 x 17, forward + backward, against mmdet's; losses of pairs against VFL."""
    generator = torch.Generator().manual_seed(0)
    rows, classes = 67200, 80
    logits = (torch.randn(rows, classes, generator=generator) - 3).to(args.device).requires_grad_()
    label, score, quality = torch.full((rows,), classes), torch.zeros(rows), torch.zeros(rows, classes)
    chosen = torch.randperm(rows, generator=generator)[:600]
    label[chosen] = torch.randint(0, classes, (600,), generator=generator)
    score[chosen] = torch.rand(600, generator=generator)
    quality[chosen, label[chosen]] = score[chosen]
    corners = torch.randn(40000, 17, generator=generator).to(args.device).requires_grad_()
    distances = torch.rand(40000, generator=generator) * 15.9
    label, score, quality, distances = (values.to(args.device) for values in (label, score, quality, distances))

    def step(loss: torch.nn.Module, pred: Tensor, target: object) -> object:
        return torch.autograd.grad(loss(pred, target, avg_factor=600.0), pred)

    for name, pred, target in (
        ('QualityFocalLoss', logits, (label, score)),
        ('VarifocalLoss', logits, quality),
        ('DistributionFocalLoss', corners, distances),
    ):
        calls: Calls = {
            'mmdet': partial(step, getattr(stock, name)(), pred, target),
            'ours': partial(step, getattr(ours, name)(), pred, target),
        }
        if pred is logits:
            calls['sigmoid alone'] = lambda: torch.autograd.grad(logits.sigmoid().sum(), logits)
        compare(f'{name}, {" x ".join(map(str, pred.shape))}, forward + backward', calls, args)
    of_pairs = ('MatchabilityAwareLoss', 'IoUAwareBCELoss', 'PositionSupervisedLoss')
    calls = {'ours, VarifocalLoss': partial(step, ours.VarifocalLoss(), logits, quality)}
    for name in of_pairs:
        calls[f'ours, {name}'] = partial(step, getattr(ours, name)(), logits, (label, score))
        calls[f'ours, {name}, dense target'] = partial(step, getattr(ours, name)(), logits, quality)
    compare(f'Losses of pairs, {rows} x {classes}, forward + backward', calls, args)
