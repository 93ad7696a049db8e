"""Train a detector: ``python tools/train.py CONFIG [flags]``, the flags being those of mmdet's own tool."""

import argparse

import torch
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.runner import Runner

from uotod_mmdet.launch import (
    add_common_arguments,
    add_custom_hook,
    build_train_loop,
    end_distributed,
    existing_file,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector')
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
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

    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    build_train_loop(runner)
    runner.train()
    end_distributed()


if __name__ == '__main__':
    main()
