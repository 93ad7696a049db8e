"""Show a training run: ``python tools/show_run.py WORK_DIR`` draws its curves and detections and prints its AP.

Writes ``curves.png`` (losses and AP) and ``detections.png`` (validation images with ground truth and detections side
by side) into the work folder of a run of ``tools/train.py``.
"""

import argparse
import json
import warnings
from pathlib import Path

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


def read_scalars(work_dir: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """What the run logged, resumed parts joined: by iteration in training, by epoch in validation."""
    train, val = {}, {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        train_lines = [line for line in lines if 'loss' in line]
        if train_lines and train_lines[0].get('epoch', 1) == 1:  # a fresh start, not a resumed run
            train.clear()
            val.clear()
        train.update((line['iter'], line) for line in train_lines)
        val.update((line['step'], line) for line in lines if 'loss' not in line)
    if not val:
        raise SystemExit(f'{work_dir} holds no validated run (*/vis_data/scalars.json): give the --work-dir of one.')
    return train, val


def ap_names(val: dict[int, dict]) -> list[str]:
    """Names of average precision among what validation logged, the main one first; none where nothing was detected."""
    names = list(dict.fromkeys(name for line in val.values() for name in line if 'AP' in name))
    main = [name for name in names if name.endswith('mAP')]
    return main + [name for name in names if name.endswith(('_50', '_75', 'AP50')) and name not in main]


def draw_curves(train: dict[int, dict], val: dict[int, dict], out: Path) -> None:
    """Losses over epochs beside AP over epochs."""
    per_epoch = max(train) / max(line.get('epoch', 1) for line in train.values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    epochs = [iteration / per_epoch for iteration in train]
    for name in [name for name in next(iter(train.values())) if 'loss' in name]:
        left.plot(epochs, [line.get(name) for line in train.values()], label=name, lw=2 if name == 'loss' else 1)
    for name in ap_names(val):
        right.plot(list(val), [line.get(name) for line in val.values()], 'o-', ms=3, label=name.split('/')[-1])
    left.set(xlabel='epoch', title='training losses', ylim=(0, None))
    right.set(xlabel='epoch', title='average precision on the validation images', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_detections(cfg: Config, checkpoint: Path, out: Path, num_images: int, score_thr: float) -> None:
    """Validation images in two columns: ground truth, detections with their scores."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = init_detector(cfg, str(checkpoint), device='cpu')
    classes = dataset.metainfo['classes']
    step = max(1, len(dataset) // num_images)
    chosen = [dataset.get_data_info(index) for index in range(0, step * num_images, step)][:num_images]

    figure, grid = plt.subplots(len(chosen), 2, figsize=(10, 4 * len(chosen)), squeeze=False, constrained_layout=True)
    for info, (left, right) in zip(chosen, grid):
        image = cv2.cvtColor(cv2.imread(info['img_path']), cv2.COLOR_BGR2RGB)
        found = inference_detector(model, info['img_path']).pred_instances.cpu()
        found = found[found.scores > score_thr]
        truth = [(gt['bbox'], classes[gt['bbox_label']]) for gt in info['instances']]
        detected = [
            (box, f'{classes[label]} {score:.2f}')
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

    train, val = read_scalars(args.work_dir)
    draw_curves(train, val, args.work_dir / 'curves.png')
    config = next(args.work_dir.glob('*.py'), None)
    checkpoint = args.checkpoint or Path((args.work_dir / 'last_checkpoint').read_text().strip())
    if config is None or not checkpoint.exists():
        raise SystemExit(f'{args.work_dir} holds no config (*.py), or its checkpoint {checkpoint} is gone.')
    draw_detections(Config.fromfile(config), checkpoint, args.work_dir / 'detections.png', args.images, args.score_thr)

    print(f'\n{"epoch":>5}  ' + '  '.join(f'{name.split("/")[-1]:>12}' for name in ap_names(val)))
    for epoch, line in val.items():
        values = (f'{line[name]:.3f}' if name in line else '-' for name in ap_names(val))  # -: nothing was detected
        print(f'{epoch:>5}  ' + '  '.join(f'{value:>12}' for value in values))
    print(f'\nPictures: {args.work_dir / "curves.png"} and {args.work_dir / "detections.png"}')


if __name__ == '__main__':
    main()
