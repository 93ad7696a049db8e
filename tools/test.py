"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [flags]``.

The flags are those of mmdet's tool, and ``--quiet``.
"""

import argparse
from copy import deepcopy
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config

from uotod_mmdet.console import build_runner, plain_errors
from uotod_mmdet.launch import (
    add_common_arguments,
    add_custom_hook,
    build_test_loop,
    default_work_dir,
    end_distributed,
    existing_file,
    load_config,
)

# mmdet's defaults for configs without tta_model or tta_pipeline: the image and its mirror image, merged by NMS.
TTA_MODEL = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
TTA_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
FLIP_AND_PACK = dict(
    type='TestTimeAug',
    transforms=[
        [dict(type='mmdet.RandomFlip', prob=1.0), dict(type='mmdet.RandomFlip', prob=0.0)],
        [dict(type='mmdet.PackDetInputs', meta_keys=TTA_META_KEYS)],
    ],
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a detector.')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    add_common_arguments(parser)
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument('--show-dir', help='folder, inside the work folder, for images with predictions drawn')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows an image (%(default)s)')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation by the config's tta_model and tta_pipeline; default: image and mirror image",
    )
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def augment(cfg: Config) -> None:
    """Let the model of a config see each test image several times, and merge what it finds."""
    wrapper = cfg.test_dataloader
    while 'dataset' in wrapper.dataset:  # of a data set around another one
        wrapper = wrapper.dataset
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = [*deepcopy(wrapper.dataset.pipeline[:-1]), FLIP_AND_PACK]
    wrapper.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.get('tta_model', TTA_MODEL), module=cfg.model)


def main() -> None:
    args = parse_args()
    with plain_errors(args.quiet, Path(args.work_dir or default_work_dir(args))):
        test(args)


def test(args: argparse.Namespace) -> None:
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    cfg.load_from = existing_file(args.checkpoint, 'checkpoint')
    cfg.resume = False  # a resumed run leaves True in the config that it writes into its work folder
    add_custom_hook(cfg, type='uotod_mmdet.hooks.CheckpointFitHook')
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        augment(cfg)

    runner = build_runner(cfg, args.quiet)
    build_test_loop(runner)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()
    end_distributed()


if __name__ == '__main__':
    main()
