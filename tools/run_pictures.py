"""Pictures of a training run for show_run.py: its curves, its detections, and its plans over training."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from mmdet.apis import inference_detector, init_detector
from mmdet.evaluation import bbox_overlaps
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from uotod_mmdet.visualization.tags import Tags

STATISTICS = dict(
    matched_mass='matched mass', unmatched_gts='unmatched ground truths', plan_entropy='entropy of a row (nats)'
)
"""What is logged of the plan; the first has an axis of its own."""

KINDS = dict(hit='#00d000', wrong='#ffb000', false='#ff2020', missed='#00c8ff', truth='#ffffff')
NAMES = dict(hit='hit', wrong='wrong class', false='false detection', missed='missed object', truth='ground truth')
MIN_IOU = 0.5
"""Overlap from which a detection finds an object."""


def draw_curves(unit: str, train: dict[float, dict], val: dict[float, dict], ap_names: list[str], out: Path) -> None:
    """Losses, AP and, where they are logged, statistics of the plan, over the epochs or iterations."""
    logged = [name for name in STATISTICS if any(name in line for line in train.values())]
    figure = Figure(figsize=(5.2 * (2 + bool(logged)), 4), layout='constrained')
    axes = list(figure.subplots(1, 2 + bool(logged)))
    # Those of earlier decoder layers, which are many, show in the sum.
    losses = dict.fromkeys(name for line in train.values() for name in line if 'loss' in name and '.' not in name)
    for name in losses:
        _plot(axes[0], train, name, name, lw=2 if name == 'loss' else 1)
    axes[0].set(title='training losses', ylim=(0, None))
    best = max((line[name] for line in val.values() for name in ap_names if name in line), default=0)
    for name in ap_names:
        _plot(axes[1], val, name, name.split('/')[-1], style='o-', ms=3)
    axes[1].set(title='average precision on the validation images', ylim=(0, min(max(1.1 * best, 0.01), 1)))
    if logged:
        mass, shares = axes[2], axes[2].twinx()
        for name, color in zip(logged, ('tab:blue', 'tab:red', 'tab:green')):
            _plot(mass if name == 'matched_mass' else shares, train, name, STATISTICS[name], color=color)
        top = 1.4  # room for the legend above the curves
        mass.set(title='the plan', ylabel='predictions an image', ylim=(0, top * max(mass.dataLim.ymax, 0.1)))
        mass.yaxis.label.set_color('tab:blue')
        shares.set(ylabel='share; nats', ylim=(0, top * max(1, shares.dataLim.ymax)))
        mass.legend(handles=[*mass.lines, *shares.lines], fontsize=8, loc='upper right')
    for panel in axes:
        panel.set_xlabel(unit)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if panel.lines and not panel.get_legend():
            panel.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def _plot(axes: Axes, lines: dict[float, dict], name: str, label: str, style: str = '-', **kwargs: object) -> None:
    axes.plot(list(lines), [line.get(name) for line in lines.values()], style, label=label, **kwargs)


class Judged(NamedTuple):
    """What became of D detections and M objects."""

    detections: list[str]  # 'hit', 'wrong' (class) or 'false' for each
    found: list[bool]  # whether each object was hit, or found under a wrong class


def judge(boxes: np.ndarray, labels: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray) -> Judged:
    """Tell hits from wrong classes, false detections and missed objects.

    An object belongs to one detection at most, as in the computation of AP: the best one of its class with an IoU of
    at least 0.5; then the best one of any class. A second detection of an object is false.

    Args:
        boxes: (D, 4) x1, y1, x2, y2, best score first.
        labels: (D,).
        gt_boxes: (M, 4).
        gt_labels: (M,).
    """
    kinds, found = ['false'] * len(boxes), np.zeros(len(gt_boxes), dtype=bool)
    if not len(boxes) or not len(gt_boxes):
        return Judged(kinds, found.tolist())
    overlaps = bbox_overlaps(boxes, gt_boxes)
    for kind, allowed in (('hit', labels[:, None] == gt_labels), ('wrong', labels[:, None] != gt_labels)):
        for index in range(len(boxes)):
            free = np.where(allowed[index] & ~found, overlaps[index], 0)
            if kinds[index] == 'false' and free.max() >= MIN_IOU:
                kinds[index] = kind
                found[free.argmax()] = True
    return Judged(kinds, found.tolist())


def draw_detections(cfg: Config, checkpoint: Path, out: Path, num_images: int, score_thr: float) -> None:
    """Validation images in two columns: ground truth; detections with their scores, and missed objects."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = init_detector(cfg, str(checkpoint), device='cpu')
    names = dict(enumerate(dataset.metainfo['classes']))
    step = max(1, len(dataset) // num_images)
    chosen = [dataset.get_data_info(index) for index in range(0, step * num_images, step)][:num_images]

    figure = Figure(figsize=(10, 4 * len(chosen) + 0.4), layout='constrained')
    grid = figure.subplots(len(chosen), 2, squeeze=False)
    for info, (left, right) in zip(chosen, grid):
        image = cv2.cvtColor(cv2.imread(info['img_path']), cv2.COLOR_BGR2RGB)
        found = inference_detector(model, info['img_path']).pred_instances.cpu()
        found = found[found.scores > score_thr]
        found = found[found.scores.argsort(descending=True)]
        boxes, labels, scores = (found[name].numpy() for name in ('bboxes', 'labels', 'scores'))
        gts = [gt for gt in info['instances'] if not gt.get('ignore_flag')]
        gt_boxes = np.array([gt['bbox'] for gt in gts], dtype=np.float32).reshape(-1, 4)
        gt_labels = np.array([gt['bbox_label'] for gt in gts], dtype=int)
        judged = judge(boxes, labels, gt_boxes, gt_labels)
        tags = []
        for axes in (left, right):
            axes.imshow(image)
            axes.set_axis_off()
            tags.append(Tags(axes, image.shape[1] / 4.7, image.shape[1], image.shape[0]))
        for box, label, was_found in zip(gt_boxes, gt_labels, judged.found):
            _draw_box(left, box, 'truth')
            tags[0].put(box, names[label], to_rgb(KINDS['truth']), 6)
            if not was_found:
                _draw_box(right, box, 'missed')
        detections = list(zip(boxes, labels, scores, judged.detections))
        for box, _, _, kind in reversed(detections):
            _draw_box(right, box, kind)
        for box, label, score, kind in detections:
            tags[1].put(box, f'{names.get(label, label)} {score:.2f}', to_rgb(KINDS[kind]), 6)
        left.set_title(f'{Path(info["img_path"]).name}: {len(gts)} objects', fontsize=10)
        counts = [judged.detections.count(kind) for kind in ('hit', 'wrong', 'false')]
        counts.append(judged.found.count(False))
        right.set_title('{} hits, {} wrong class, {} false, {} missed'.format(*counts), fontsize=10)
    handles = [Line2D([], [], color=color, ls=_line(kind), lw=2.5, label=NAMES[kind]) for kind, color in KINDS.items()]
    legend = figure.legend(
        handles=handles,
        loc='outside upper center',
        ncol=len(KINDS),
        fontsize=9,
        title=f'detections with a score above {score_thr:g}; they find an object from an IoU of {MIN_IOU}',
        facecolor='#777777',
        labelcolor='white',
    )
    legend.get_title().set(color='white', fontsize=9)
    figure.savefig(out, dpi=90)


def _draw_box(axes: Axes, box: np.ndarray, kind: str) -> None:
    x1, y1, x2, y2 = box.tolist()
    for color, width, alpha in (('black', 2.6, 0.3), (KINDS[kind], 1.6, 1)):
        style = dict(ec=color, lw=width, alpha=alpha, ls=_line(kind))
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def _line(kind: str) -> tuple:
    return (0, (3, 1.5)) if kind == 'missed' else (0, ())


def plan_pictures(work_dir: Path) -> dict[str, dict[int, Path]]:
    """Pictures of PlanVisualizationHook by name and by step, resumed parts joined, after the last fresh start."""
    found: dict[str, dict[int, Path]] = {}
    for folder in sorted(work_dir.glob('*/vis_data/vis_image')):
        pictures: dict[str, dict[int, Path]] = {}
        for path in folder.glob('plan_*_*.png'):
            name, _, step = path.stem.rpartition('_')
            if step.isdigit():
                pictures.setdefault(name, {})[int(step)] = path
        for name, steps in pictures.items():
            before = {} if 0 in steps else found.get(name, {})
            kept = {step: path for step, path in before.items() if step < min(steps)}
            found[name] = dict(sorted({**kept, **steps}.items()))
    return found


def join_plans(work_dir: Path, form: str, width: int) -> list[Path]:
    """Write the plans over training of each image, as an animation (webp, gif) or as a strip of at most six (png).

    Args:
        work_dir: Of the run.
        form: 'webp', 'gif' or 'png'.
        width: Largest width of a picture, pixels.

    Raises:
        SystemExit: If the run has no pictures.
    """
    found = plan_pictures(work_dir)
    if not found:
        raise SystemExit(
            f"{work_dir} holds no pictures of plans: train with custom_hooks=[dict(type='uotod_mmdet."
            "PlanVisualizationHook')] and a visualizer with LocalVisBackend."
        )
    written = []
    for name, steps in sorted(found.items()):
        frames = [Image.open(path).convert('RGB') for path in steps.values()]
        for frame in frames:
            frame.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
        out = work_dir / f'{name}.{form}'
        if form == 'png':
            _strip(frames).save(out, optimize=True)
        else:
            durations = [700] * (len(frames) - 1) + [2500]
            options = dict(quality=60, method=6) if form == 'webp' else {}
            frames[0].save(out, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
        written.append(out)
    return written


def _strip(frames: list[Image.Image]) -> Image.Image:
    """At most six of the pictures, from the first to the last, two beside one another."""
    chosen = [frames[index] for index in np.unique(np.linspace(0, len(frames) - 1, 6).round().astype(int))]
    wide, high = chosen[0].size
    columns = min(2, len(chosen))
    strip = Image.new('RGB', (columns * wide, -(-len(chosen) // columns) * high), 'white')
    for index, frame in enumerate(chosen):
        strip.paste(frame, (index % columns * wide, index // columns * high))
    return strip
