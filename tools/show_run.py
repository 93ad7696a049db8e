"""Show a training run: ``python tools/show_run.py WORK_DIR`` draws its curves and detections and prints its AP.

Writes ``curves.png`` (losses and AP) and ``detections.png`` (validation images with ground truth and detections side
by side) into the work folder of a run of ``tools/train.py``.
"""

import argparse
import itertools
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')

import cv2
import matplotlib.pyplot as plt
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

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
        part_train = {line['iter']: line for line in lines if 'iter' in line}
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


def draw_curves(run: Run, out: Path) -> None:
    """Losses beside AP, over the epochs or iterations."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for name in dict.fromkeys(name for line in run.train.values() for name in line if 'loss' in name):
        values = [line.get(name) for line in run.train.values()]
        left.plot(list(run.train), values, label=name, lw=2 if name == 'loss' else 1)
    for name in ap_names(run.val):
        right.plot(list(run.val), [line.get(name) for line in run.val.values()], 'o-', ms=3, label=name.split('/')[-1])
    left.set(xlabel=run.unit, title='training losses', ylim=(0, None))
    right.set(xlabel=run.unit, title='average precision on the validation images', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_detections(cfg: Config, checkpoint: Path, out: Path, num_images: int, score_thr: float) -> None:
    """Validation images in two columns: ground truth, detections with their scores."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = init_detector(cfg, str(checkpoint), device='cpu')
    names = dict(enumerate(dataset.metainfo['classes']))
    step = max(1, len(dataset) // num_images)
    chosen = [dataset.get_data_info(index) for index in range(0, step * num_images, step)][:num_images]

    figure, grid = plt.subplots(len(chosen), 2, figsize=(10, 4 * len(chosen)), squeeze=False, constrained_layout=True)
    for info, (left, right) in zip(chosen, grid):
        image = cv2.cvtColor(cv2.imread(info['img_path']), cv2.COLOR_BGR2RGB)
        found = inference_detector(model, info['img_path']).pred_instances.cpu()
        found = found[found.scores > score_thr]
        truth = [(gt['bbox'], names[gt['bbox_label']]) for gt in info['instances']]
        detected = [
            (box, f'{names.get(label, label)} {score:.2f}')
            for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())
        ]
        left.set_title(f'ground truth: {len(truth)}', fontsize=10)
        right.set_title(f'detections with score > {score_thr}: {len(detected)}', fontsize=10)
        for axes, boxes, color in ((left, truth, 'lime'), (right, detected, 'cyan')):
            axes.imshow(image)
            axes.set_axis_off()
            for (x1, y1, x2, y2), text in boxes:
                axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.3))
                axes.text(x1, y1, text, fontsize=6, va='bottom', bbox=dict(fc='black', ec='none', pad=0.8), color=color)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='--work-dir of a run of tools/train.py')
    parser.add_argument('--checkpoint', type=Path, help='default: the last one of the run')
    parser.add_argument('--images', type=int, default=4, help='how many validation images to draw')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a detection that is drawn')
    args = parser.parse_args()
    if args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    if args.checkpoint and not args.checkpoint.is_file():
        raise SystemExit(f'--checkpoint {args.checkpoint} is not there.')

    run = read_run(args.work_dir)
    names = ap_names(run.val)
    width = max(len(run.unit), 5)
    print(f'\n{run.unit:>{width}}  ' + '  '.join(f'{name.split("/")[-1]:>12}' for name in names))
    for place, line in run.val.items():
        values = (f'{line[name]:.3f}' if name in line else '-' for name in names)  # -: nothing was detected
        print(f'{place:>{width}g}  ' + '  '.join(f'{value:>12}' for value in values))

    draw_curves(run, args.work_dir / 'curves.png')
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
