"""Train a detector: ``python tools/train.py CONFIG [flags]``, the flags being those of mmdet's own tool and three more.

    python tools/train.py CONFIG --quiet --watch --tensorboard

shows losses and metrics alone, draws and logs how a few training images are matched, and writes everything for
TensorBoard, too.
"""

import argparse
from pathlib import Path

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo

from uotod_mmdet.console import build_runner, plain_errors
from uotod_mmdet.launch import (
    add_common_arguments,
    add_custom_hook,
    add_tensorboard,
    build_train_loop,
    default_work_dir,
    end_distributed,
    existing_file,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector.')
    parser.add_argument('config', help='path of the config')
    add_common_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the config's auto_scale_lr"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a path, from the latest one in the work folder',
    )
    parser.add_argument(
        '--watch',
        action='store_true',
        help='after each epoch (1000 iterations where the loop counts those) draw how the first training image is '
        'matched, and log how much the matching of 16 changed: PlanVisualizationHook and MatchingStabilityHook',
    )
    parser.add_argument(
        '--tensorboard', action='store_true', help='also log to TensorBoard: tensorboard --logdir WORK_DIR shows it'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with plain_errors(args.quiet, Path(args.work_dir or default_work_dir(args))):
        train(args)


def train(args: argparse.Namespace) -> None:
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)

    if args.amp:
        if not torch.cuda.is_available():
            raise SystemExit('--amp needs a GPU: mmengine has no mixed precision on CPU. Leave the flag out.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit(f'--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in {args.config}.')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else existing_file(args.resume, '--resume')
        add_custom_hook(cfg, type='uotod_mmdet.hooks.CheckpointFitHook')
    add_custom_hook(cfg, type='uotod_mmdet.hooks.DatasetFitHook')
    if args.watch:
        interval = 1000 if 'max_iters' in cfg.train_cfg else 1
        for name in ('PlanVisualizationHook', 'MatchingStabilityHook'):
            add_custom_hook(cfg, type=f'uotod_mmdet.hooks.{name}', interval=interval)
    if args.tensorboard:
        add_tensorboard(cfg)

    runner = build_runner(cfg, args.quiet)
    build_train_loop(runner)
    runner.train()
    end_distributed()


if __name__ == '__main__':
    main()
