"""Show a training run: ``python tools/show_run.py WORK_DIR`` draws its curves and detections and prints its AP.

Writes ``curves.png`` (losses, AP, statistics of the plan) and ``detections.png`` (validation images with ground truth
and detections side by side) into the work folder of a run of ``tools/train.py``. ``--plans`` makes an animation or a
strip of the pictures that PlanVisualizationHook drew of each image.
"""

import argparse
import itertools
import json
import warnings
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from run_pictures import draw_curves, draw_detections, join_plans

import uotod_mmdet  # noqa: F401  (registers our classes)

warnings.filterwarnings('ignore', category=UserWarning)


class Run(NamedTuple):
    """What a run logged, resumed parts joined, by place in training: epochs or iterations, as its loop counts."""

    unit: str  # 'epoch' or 'iteration'
    train: dict[float, dict]
    val: dict[float, dict]
    cfg: Config  # of the last part


def read_run(work_dir: Path) -> Run:
    """The run in a work folder, after its last fresh start.

    Places are epochs where all of it counted epochs, and iterations otherwise.

    Raises:
        SystemExit: If nothing was validated there.
    """
    train, val, cfgs = {}, {}, []  # by iteration
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        cfg = Config.fromfile(log.with_name('config.py'))
        part_train: dict[int, dict] = {}
        for line in (line for line in lines if 'iter' in line):
            part_train.setdefault(line['iter'], {}).update(line)  # hooks log lines of their own
        part_val = place_validations(lines, cfg)
        begin = min([*part_train, *part_val], default=None)
        if begin is None:
            continue
        if not cfg.get('resume'):
            begin = 0
            cfgs.clear()
        cfgs.append(cfg)
        for logged, part in ((train, part_train), (val, part_val)):
            for iteration in [iteration for iteration in logged if iteration >= begin]:
                del logged[iteration]  # it was done again
            logged.update(part)
    if not val:
        raise SystemExit(f'{work_dir} holds no validated run (*/vis_data/scalars.json): give the --work-dir of one.')
    # Logging is by inner iteration, so the last line of an epoch comes before its end: the longest is best.
    per_epoch = max((-(-line['iter'] // line['epoch']) for line in train.values() if 'epoch' in line), default=0)
    if per_epoch == 0 or not all(map(counts_epochs, cfgs)):
        return Run('iteration', train, val, cfgs[-1])
    epochs = {line['step'] if logs_epochs(cfgs[-1]) else round(line['step'] / per_epoch): line for line in val.values()}
    return Run('epoch', {iteration / per_epoch: line for iteration, line in train.items()}, epochs, cfgs[-1])


def counts_epochs(cfg: Config) -> bool:
    """Whether the training loop counts epochs."""
    return 'max_iters' not in cfg.train_cfg


def logs_epochs(cfg: Config) -> bool:
    """Whether mmengine logs a validation by the epoch, not by the iteration."""
    return cfg.get('default_hooks', {}).get('logger', {}).get('log_metric_by_epoch', True)


def place_validations(lines: list[dict], cfg: Config) -> dict[int, dict]:
    """Validations by the iteration after which each was done.

    A loop that counts iterations stays in epoch 0 throughout, which is what mmengine logs by default: its validations
    are placed by val_interval and by the training logged around them.
    """
    if not logs_epochs(cfg):
        return {line['step']: line for line in lines if 'iter' not in line}
    dense = counts_epochs(cfg) or cfg.train_cfg.get('dynamic_intervals')
    interval = 1 if dense else cfg.train_cfg.get('val_interval', 1000)
    longest = cfg.train_cfg.get('max_iters', float('inf'))
    first = next((line['iter'] for line in lines if 'iter' in line), None)
    early = sum(1 for _ in itertools.takewhile(lambda line: 'iter' not in line, lines))
    # Those before the first line of training are the last possible ones before it; a resumed run has others before.
    place = 0 if first is None else ((first - 1) // interval - early) * interval
    placed = {}
    for line in lines:
        if 'iter' in line:
            place = max(place, -(-line['iter'] // interval) * interval - interval)
        else:
            place += interval
            placed[min(place, longest)] = line
    return placed


def ap_names(val: dict[float, dict]) -> list[str]:
    """Names of average precision among what validation logged, the main one first; none where nothing was detected."""
    names = list(dict.fromkeys(name for line in val.values() for name in line if 'AP' in name))
    main = [name for name in names if name.endswith('mAP')]
    return main + [name for name in names if name.endswith(('_50', '_75', 'AP50')) and name not in main]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='--work-dir of a run of tools/train.py')
    parser.add_argument(
        '--checkpoint', type=Path, help='weights to draw detections with; default: the last checkpoint of the run'
    )
    parser.add_argument('--images', type=int, default=4, help='how many validation images to draw (%(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a detection that is drawn (%(default)s)'
    )
    parser.add_argument(
        '--plans',
        nargs='?',
        const='webp',
        choices=('webp', 'gif', 'png'),
        help='join the pictures of PlanVisualizationHook: an animation (webp, the default, or gif) or a strip (png)',
    )
    parser.add_argument(
        '--width', type=int, default=1000, help='largest width of a picture of --plans, pixels (%(default)s)'
    )
    args = parser.parse_args()
    for name in ('images', 'width'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.checkpoint and not args.checkpoint.is_file():
        raise SystemExit(f'--checkpoint {args.checkpoint} is not there.')

    if args.plans:
        print('Plans over training: ' + ', '.join(map(str, join_plans(args.work_dir, args.plans, args.width))))
    run = read_run(args.work_dir)
    names = ap_names(run.val)
    width = max(len(run.unit), 5)
    print(f'\n{run.unit:>{width}}  ' + '  '.join(f'{name.split("/")[-1]:>12}' for name in names))
    for place, line in run.val.items():
        values = (f'{line[name]:.3f}' if name in line else '-' for name in names)  # -: nothing was detected
        print(f'{place:>{width}g}  ' + '  '.join(f'{value:>12}' for value in values))

    draw_curves(run.unit, run.train, run.val, names, args.work_dir / 'curves.png')
    checkpoint = args.checkpoint or last_checkpoint(args.work_dir)
    draw_detections(run.cfg, checkpoint, args.work_dir / 'detections.png', args.images, args.score_thr)
    print(f'\nPictures: {args.work_dir / "curves.png"} and {args.work_dir / "detections.png"}')


def last_checkpoint(work_dir: Path) -> Path:
    """The checkpoint that the run wrote last, also where the folder was moved since.

    Raises:
        SystemExit: If there is none.
    """
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        raise SystemExit(f'{work_dir} holds no checkpoint (last_checkpoint): give one by --checkpoint.')
    checkpoint = Path(pointer.read_text().strip())
    if not checkpoint.exists():
        checkpoint = work_dir / checkpoint.name
    if not checkpoint.exists():
        raise SystemExit(f'The last checkpoint {checkpoint} is gone: give another by --checkpoint.')
    return checkpoint


if __name__ == '__main__':
    main()
