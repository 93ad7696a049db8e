"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [flags]``, the flags being those of mmdet's tool."""

import argparse

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from uotod_mmdet.launch import add_common_arguments, add_custom_hook, end_distributed, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a detector')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    add_common_arguments(parser)
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument('--show-dir', help='folder, inside the work folder, for images with predictions drawn')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows an image')
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def main() -> None:
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    cfg.resume = False  # a resumed run leaves True in the config that it writes into its work folder
    add_custom_hook(cfg, type='uotod_mmdet.CheckpointFitHook')
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)

    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()
    end_distributed()


if __name__ == '__main__':
    main()
