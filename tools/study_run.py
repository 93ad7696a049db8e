"""One run of a study, in a process of its own: ``study.py run`` starts it.

Trains, tests the last state again without NMS where the study asks for that, and writes ``result.json`` into the run's
folder, also if training fails.
"""

import argparse
import json
import math
import os
import re
import resource
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from study_data import use_folder
from study_file import METRICS, Run, Study, StudyError, load_study
from study_results import code_version

from uotod_mmdet.launch import add_custom_hook, build_train_loop

COCO_NAMES = {
    'AP': 'mAP',
    'AP50': 'mAP_50',
    'AP75': 'mAP_75',
    'AP_s': 'mAP_s',
    'AP_m': 'mAP_m',
    'AP_l': 'mAP_l',
    'AR': 'AR@100',
}
OFF = dict(type='nms', iou_threshold=1.0)  # no two boxes overlap by more, so that none is removed
REASON_LINES = 3


class Recorder(Hook):
    """Keeps each validation, tells how far the run is, and stops one that diverges or whose parent is gone."""

    priority = 'LOWEST'

    def __init__(self, progress: Path, parent: int) -> None:
        self.progress, self.parent = progress, parent
        self.validations, self.told = [], 0.0

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train') -> None:
        if os.getppid() != self.parent:
            os._exit(1)  # study.py was killed; a run that goes on would only be done twice

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        losses = {name: value.detach() for name, value in (outputs or {}).items() if 'loss' in name}
        values = torch.stack([value.float() for value in losses.values()]).tolist() if losses else []  # one wait
        wrong = [name for name, value in zip(losses, values) if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f'the run diverged: {", ".join(sorted(wrong))} is not finite at iteration {runner.iter + 1} '
                f'(epoch {runner.epoch + 1})'
            )
        if time.monotonic() > self.told + 1:
            self.told = time.monotonic()
            self.progress.write_text(f'{(runner.iter + 1) / runner.max_iters:.4f}')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        place = runner.iter if isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch
        self.validations.append((place, scores_of(metrics or {})))


def scores_of(metrics: dict) -> dict:
    """Metrics by our names, and AP by class; None where there is nothing to find, 0 where nothing was found."""
    metrics = {name.removeprefix('coco/'): float(value) for name, value in metrics.items()}
    if 'bbox_mAP' not in metrics:  # CocoMetric reports nothing where nothing was detected
        return {**dict.fromkeys(COCO_NAMES, 0.0), 'by_class': {}}
    known = {name: value if math.isfinite(value) and value >= 0 else None for name, value in metrics.items()}
    by_class = {name.removesuffix('_precision'): known[name] for name in known if name.endswith('_precision')}
    return {**{ours: known[f'bbox_{theirs}'] for ours, theirs in COCO_NAMES.items()}, 'by_class': by_class}


def prepare(study: Study, run: Run, work_dir: Path) -> Config:
    """The config of a run as mmengine's Runner takes it."""
    cfg = study.config(run.arm, run.data)
    if 'folder' in study.data[run.data]:
        use_folder(cfg, study.data[run.data], run, work_dir.parent / 'data' / run.data)
    if cfg.val_evaluator.get('type') != 'CocoMetric':
        raise StudyError(f'the config of arm {run.arm!r} is not evaluated by CocoMetric, which a study needs')
    cfg.val_evaluator.update(classwise=True, metric_items=list(COCO_NAMES.values()))
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.work_dir = str(work_dir)
    cfg.launcher = 'none'
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=run.seed)
    last = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters
    cfg.default_hooks.checkpoint.update(interval=last, max_keep_ckpts=1, save_best=None, save_optimizer=False)
    add_custom_hook(cfg, type='uotod_mmdet.hooks.DatasetFitHook')
    return cfg


def turn_off_nms(model: torch.nn.Module) -> None:
    """Let the model hand out all boxes; one without NMS stays as it is."""
    for module in model.modules():
        cfg = getattr(module, 'test_cfg', None)
        if isinstance(cfg, dict) and 'nms' in cfg:
            cfg['nms'] = type(cfg)(OFF)


def train(study: Study, run: Run, work_dir: Path, parent: int) -> dict:
    """Train and test; what the results file holds of it."""
    runner = Runner.from_cfg(prepare(study, run, work_dir))
    build_train_loop(runner)
    recorder = Recorder(work_dir / 'progress', parent)
    runner.register_hook(recorder)
    runner.train()
    validations = list(recorder.validations)
    final = {name: validations[-1][1][name] for name in COCO_NAMES}
    if any(metric.endswith('_without_nms') for metric in study.metrics):
        turn_off_nms(runner.model)
        runner.val_loop.run()
        without = recorder.validations[-1][1]
        final.update({f'{name}_without_nms': without[name] for name in COCO_NAMES})
    times, _ = runner.message_hub.get_scalar('train/time').data
    if torch.cuda.is_available():
        device, peak = dict(device=torch.cuda.get_device_name()), torch.cuda.max_memory_allocated() / 2**20
    else:
        device, peak = (
            {},
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10),
        )
    return dict(
        status='done',
        epochs=validations[-1][0],
        curve=[[place, scores['AP']] for place, scores in validations],
        **({'curves': curves_of(runner, study.curves)} if study.curves else {}),
        final={name: final[name] for name in METRICS if name in final},
        by_class=validations[-1][1]['by_class'],
        seconds_an_iteration=round(statistics.median(times), 4),
        peak_mb=round(peak),
        **device,
    )


def curves_of(runner: Runner, names: list[str]) -> dict[str, list]:
    """What MatchingStabilityHook found after each epoch from the second on, by its names: [epoch, value]."""
    found = {}
    for name in names:
        if f'matching/{name}' not in runner.message_hub.log_scalars:
            known = [key.removeprefix('matching/') for key in runner.message_hub.log_scalars if 'matching/' in key]
            raise StudyError(
                f'curves: nothing was logged as {name!r} (there are: {", ".join(known) or "none"}); add '
                "dict(type='uotod_mmdet.MatchingStabilityHook') to the custom_hooks of each arm."
            )
        values = [float(value) for value in runner.message_hub.get_scalar(f'matching/{name}').data[0]]
        found[name] = [[epoch, round(value, 4)] for epoch, value in enumerate(values, start=2)]
    return found


def reason_of(error: BaseException) -> str:
    """The place and the message of an error, without folders of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f' ({Path(frames[-1].filename).name}:{frames[-1].lineno})' if frames else ''
    lines = ''.join(traceback.format_exception_only(error)).strip().splitlines()
    text = ' '.join(line.strip() for line in lines[-REASON_LINES:]) + place
    return re.sub(r'(?<![\w.])/(?:[\w.@+-]+/)+', '', text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', type=Path, help='study file')
    parser.add_argument('arm', help='name of the detector in the study')
    parser.add_argument('data', help='name of the data set in the study')
    parser.add_argument('seed', type=int, help='seed of the run')
    parser.add_argument('--fold', type=int, help='fold of the data; default: its own split')
    parser.add_argument('--work-dir', type=Path, required=True, help="the run's own folder")
    parser.add_argument('--threads', type=int, required=True, help='threads of torch')
    parser.add_argument('--parent', type=int, required=True, help='process that waits for the run')
    args = parser.parse_args()
    setup_cache_size_limit_of_dynamo()
    torch.set_num_threads(args.threads)
    study, run = load_study(args.study), Run(args.arm, args.data, args.seed, args.fold)
    result = dict(config_hash=study.config_hash(run.arm, run.data), **code_version())
    try:
        result.update(train(study, run, args.work_dir, args.parent))
    except Exception as error:
        traceback.print_exc()
        result.update(status='failed', reason=reason_of(error))
    partial = args.work_dir / 'result.partial'
    partial.write_text(json.dumps(result, allow_nan=False))
    partial.rename(args.work_dir / 'result.json')


if __name__ == '__main__':
    main()
