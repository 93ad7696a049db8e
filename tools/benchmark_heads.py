"""Benchmarks of whole heads against mmdet's: DETRHead's loss, and a training step of GFL."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from benchmark_inputs import random_images
from benchmark_measure import Calls, compare
from mmdet.registry import DATASETS
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from uotod_mmdet.datasets.color_boxes import make_color_boxes

ROOT = Path(__file__).resolve().parent.parent


def heads(args: argparse.Namespace) -> None:
    """DETRHead's loss, 6 layers, B=8, N=300, M<=30, C=80, forward + backward, against mmdet's."""
    _, truths, metas = random_images(8, 300, 30, 80, args.device)
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 8, 300, 81, generator=generator).to(args.device).requires_grad_()
    boxes = torch.randn(6, 8, 300, 4, generator=generator).sigmoid().to(args.device).requires_grad_()

    def step(head: torch.nn.Module) -> object:
        terms = head.loss_by_feat(scores, boxes, truths, metas)
        return torch.autograd.grad(sum(value for name, value in terms.items() if 'loss' in name), [scores, boxes])

    calls: Calls = {}
    for name, head, assigner in (
        ('mmdet, Hungarian', 'DETRHead', 'HungarianAssigner'),
        ('ours, Hungarian', 'uotod_mmdet.DETRHead', 'uotod_mmdet.HungarianAssigner'),
        ('ours, Sinkhorn', 'uotod_mmdet.DETRHead', 'uotod_mmdet.BalancedSinkhornAssigner'),
    ):
        model = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model
        init_default_scope('mmdet')
        model.train_cfg.assigner.type = assigner
        model.bbox_head.update(type=head, train_cfg=model.train_cfg)
        calls[name] = partial(step, MMDET_MODELS.build(model.bbox_head).to(args.device))
    compare('DETRHead loss, 6 layers, B=8, N=300, M<=30, C=80, forward + backward', calls, args)


def training_step(args: argparse.Namespace) -> None:
    """A whole training step of tiny GFL on 16 images, soft plan against stock GFL with ATSSAssigner."""
    calls: Calls = {}
    with tempfile.TemporaryDirectory() as folder:
        make_color_boxes(Path(folder), 'mini')
        for name, config in (('stock GFL, ATSSAssigner', 'gfl_tiny_atss'), ('our GFL, soft plan', 'gfl_tiny_soft')):
            cfg = Config.fromfile(ROOT / f'configs/color_boxes/{config}.py')
            init_default_scope('mmdet')
            cfg.train_dataloader.dataset.update(data_root=folder, size='mini')
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            items = [dataset[index] for index in range(16)]
            torch.manual_seed(0)
            detector = MMDET_MODELS.build(cfg.model).to(args.device).train()
            optim_wrapper = build_optim_wrapper(detector, cfg.optim_wrapper)

            def step(detector=detector, optim_wrapper=optim_wrapper, items=items) -> object:
                inputs, samples = [item['inputs'] for item in items], [item['data_samples'] for item in items]
                return detector.train_step(dict(inputs=inputs, data_samples=samples), optim_wrapper)

            calls[name] = step
        compare('Whole training step of tiny GFL, 16 images of 250 x 200', calls, args)
