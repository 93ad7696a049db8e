"""Pictures of a matching: the image with what answers for its ground truths, and the heaviest rows of cost and plan."""

import colorsys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from uotod_mmdet.costs import prior_centers_and_sizes

from .recorder import Record
from .tags import Tags, text_color

MIN_SHOWN = 0.01
"""Numbers and pairs lighter than this are left out."""
MAX_DRAWN = 400
"""Boxes or positions that are drawn at most, the heaviest."""
CELL, ROW = 0.26, 0.17
"""Width of a column and height of a row of a matrix with many, inches."""
HALO = [withStroke(linewidth=2, foreground='black', alpha=0.6)]


def matching_figure(item: dict, record: Record, title: str = '', max_rows: int = 20) -> Figure:
    """The image beside the heaviest rows of its cost and plan.

    Its size depends on the image, the number of ground truths and ``max_rows`` alone, so that pictures of one image
    over training can follow one another.

    Args:
        item: The image, as :func:`~uotod_mmdet.visualization.fixed_items` gives it.
        record: Its matching.
        title: Title of the figure.
        max_rows: Predictions in the matrices at most.
    """
    image, plan = image_of(item), to_numpy(record.plan)
    num_preds, num_gts = len(plan), plan.shape[1] - 1
    shown = heaviest_rows(plan, max_rows)
    rows, columns = [str(index + 1) for index in shown], [*gt_names(num_gts), 'bg']
    cost = None if record.cost is None or not num_gts else to_numpy(record.cost)[shown]
    matrices = 1 if cost is None else 2
    height = max(matrices * (ROW * len(shown) + 0.9) + 0.5, 4.0)
    width = min(max((height - 1) * image.shape[1] / image.shape[0], 3.0), 7.5)
    figure = Figure(figsize=(width + matrix_width(num_gts + 1) + 0.2, height), layout='constrained')
    parts: Any = figure.subfigures(1, 2, width_ratios=[width, matrix_width(num_gts + 1)])
    left, right = parts
    draw_scene(left.subplots(), image, record, width, shown)
    panels = list(right.subplots(matrices, 1, squeeze=False)[:, 0])
    if cost is not None:  # of the pairs: what the background costs is the assigner's affair
        draw_cost(panels.pop(0), cost, plan[shown], rows, columns[:-1])
    draw_plan(panels[0], plan[shown], rows, columns, f'plan: mass of {len(shown)} of {num_preds} predictions')
    column_masses(panels[0], plan.sum(0))
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def rendered(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The pixels of a figure, (H, W, 3) uint8 RGB."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def image_of(item: dict) -> np.ndarray:
    """The image of an item, (H, W, 3) uint8 RGB; mmdet loads BGR."""
    image = to_numpy(item['inputs']).transpose(1, 2, 0)
    if image.dtype != np.uint8:  # normalised in the pipeline
        image = (255 * (image - image.min()) / max(float(np.ptp(image)), 1e-9)).astype(np.uint8)
    return image[:, :, 2::-1] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, 2)


def to_numpy(tensor: Any) -> np.ndarray:
    """The values of a tensor on any device."""
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def gt_names(count: int) -> list[str]:
    """A, B, ..., Z, then numbers."""
    return [chr(ord('A') + index) if index < 26 else str(index) for index in range(count)]


def gt_colors(count: int) -> list[tuple[float, float, float]]:
    """A colour for each ground truth; those of neighbours differ most."""
    golden = 0.618
    return [colorsys.hsv_to_rgb(index * golden % 1, 0.9, (1.0, 0.75)[index % 2]) for index in range(count)]


def heaviest_rows(plan: np.ndarray, count: int) -> np.ndarray:
    """Indices of the rows that carry most, at most ``count``: first the heaviest of each ground truth, then others.

    Args:
        plan: (N, M + 1), last column the background.
        count: How many.

    Returns:
        Sorted by the ground truth that a row gives most to, heavier rows first, so that the matrix is read down its
        diagonal.
    """
    pairs = plan[:, :-1]
    mass = pairs.sum(1)
    order = np.argsort(-mass, kind='stable')
    if pairs.shape[1]:
        best = pairs.argmax(0)[np.argsort(-pairs.max(0), kind='stable')]
        order = np.concatenate([best[pairs[best].sum(1) > MIN_SHOWN], order])
    chosen = np.array(list(dict.fromkeys(order.tolist()))[:count], dtype=int)
    if not pairs.shape[1]:
        return np.sort(chosen)
    return chosen[np.lexsort((-pairs[chosen].max(1), pairs[chosen].argmax(1)))]


def matrix_width(columns: int) -> float:
    """Width of the panel of a matrix, inches."""
    return max(2.6, CELL * columns + 0.9)


def draw_scene(axes: Axes, image: np.ndarray, record: Record, width: float, shown: Iterable[int] = ()) -> None:
    """The image, its ground truths, and what answers for them.

    Of heads of queries the predicted boxes, of dense heads the positions on the pyramid levels; each in the colour of
    its ground truth, the more opaque and the thicker the more mass goes there.

    Args:
        axes: Where to draw.
        image: (H, W, 3).
        record: Its matching.
        width: Width of the axes, inches.
        shown: Predictions whose number is written at their box.
    """
    plan, gts = to_numpy(record.plan), _ground_truths(record)
    colors, names = gt_colors(len(gts)), gt_names(len(gts))
    axes.imshow(image)
    axes.set_axis_off()
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    tags = Tags(axes, image.shape[1] / width, image.shape[1], image.shape[0])
    for box, name, color in zip(gts, names, colors):
        _rectangle(axes, box, ec='white', ls=(0, (4, 2)), lw=1.0, path_effects=HALO)
        tags.put(box, name, color, 7, bold=True)
    pairs = plan[:, : len(gts)]
    matched = np.argwhere(pairs > 0.05)
    matched = matched[np.argsort(-pairs[tuple(matched.T)], kind='stable')]
    if record.batch.priors is not None:
        what = _draw_positions(axes, record, pairs, matched, colors)
        if 'bboxes' in record.batch.pred_instances(0):
            what += ', boxes those of the heaviest'
            for gt in np.unique(matched[:, 1]):
                heaviest = int(pairs[:, gt].argmax())
                share = min(float(pairs[heaviest, gt]), 1.0)
                _rectangle(axes, to_numpy(record.batch.bboxes)[0, heaviest], ec=colors[gt], alpha=share, lw=1.5 * share)
    else:
        what = 'predictions solid, thick and opaque by their mass'
        boxes = to_numpy(record.batch.bboxes)[0] if record.batch.bboxes is not None else np.zeros((len(plan), 4))
        matched = matched[:MAX_DRAWN]
        for pred, gt in matched[::-1]:
            share = min(float(pairs[pred, gt]), 1.0)
            _rectangle(axes, boxes[pred], ec=colors[gt], alpha=share, lw=0.5 + 2 * share)
        of_row = {int(pred): gt for pred, gt in matched[::-1]}
        for pred in shown:
            if int(pred) in of_row:
                tags.put(boxes[pred], str(pred + 1), colors[of_row[int(pred)]], 5)
    total = plan.sum()
    background = 100 * plan[:, -1].sum() / total if total else 0
    count = f'{len(gts)} ground truth{"s" * (len(gts) != 1)} dashed'
    axes.set_title(f'{count}\n{what}\nbackground: {background:.1f} % of the mass', fontsize=8)


def _draw_positions(axes: Axes, record: Record, pairs: np.ndarray, matched: np.ndarray, colors: Sequence[tuple]) -> str:
    """Dots at the positions of matched pairs (K, 2) of a dense head; says what they are."""
    priors = record.batch.priors
    assert priors is not None
    centers = to_numpy(prior_centers_and_sizes(priors, record.batch.prior_format)[0])[0]
    levels = to_numpy(record.levels) if record.levels is not None else np.zeros(len(centers), dtype=int)
    mass: dict[tuple, float] = {}  # several anchors may share a position
    for pred, gt in matched:
        key = (*centers[pred].round(2).tolist(), int(levels[pred]), int(gt))
        mass[key] = mass.get(key, 0.0) + float(pairs[pred, gt])
    heaviest = sorted(mass.items(), key=lambda entry: -entry[1])[:MAX_DRAWN]
    for (x, y, level, gt), held in sorted(heaviest, key=lambda entry: (-entry[0][2], entry[1])):
        share = min(held, 1.0)
        around = [withStroke(linewidth=2, foreground='black', alpha=0.6 * share)]
        axes.plot(x, y, 'o', ms=_dot(level), mfc=colors[gt], mec='white', mew=0.7, alpha=share, path_effects=around)
    if record.levels is None:
        return 'dots: matched positions, opaque by their mass'
    counts = {level: sum(key[2] == level for key in mass) for level in range(int(levels.max(initial=0)) + 1)}
    handles = [
        Line2D([], [], ls='', marker='o', ms=_dot(level), mfc='white', mec='black', label=f'level {level}: {count}')
        for level, count in counts.items()
    ]
    axes.legend(
        handles=handles, fontsize=6, loc='upper center', bbox_to_anchor=(0.5, 0), ncol=len(handles), frameon=False
    )
    return 'dots: matched positions, opaque by their mass, large on coarse levels'


def _dot(level: int) -> float:
    return 5.0 + 2.0 * level


def _ground_truths(record: Record) -> np.ndarray:
    """Boxes of the ground truths, (M, 4); zeros where there are none."""
    count = record.plan.shape[1] - 1
    boxes = record.batch.gt_bboxes
    return to_numpy(boxes)[0, :count] if boxes is not None else np.zeros((count, 4))


def _rectangle(axes: Axes, box: np.ndarray, **style: Any) -> None:
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, clip_on=True, **style))


def draw_plan(axes: Axes, plan: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Rows of a plan, (R, M + 1): the darker the heavier; numbers above 0.01."""
    _draw_matrix(axes, np.minimum(plan, 1), plan, plan > MIN_SHOWN, rows, columns, title)


def draw_cost(
    axes: Axes, cost: np.ndarray, plan: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = ''
) -> None:
    """Costs of the same rows: the darker the cheaper; numbers where the plan has some, or everywhere if they fit.

    The shades span the costs of the pairs that the plan uses. Beyond, everything is white: one large cost, as that of
    InsideGTCost, does not take the difference from the others.

    Args:
        axes: Where to draw.
        cost: (R, M), or (R, M + 1) with the background.
        plan: (R, M + 1).
        rows: Names of the R rows.
        columns: Names of the columns.
        title: Title; by default what it is.
    """
    used = plan[:, : cost.shape[1]] > MIN_SHOWN
    pairs, matched = cost[:, : plan.shape[1] - 1], used[:, : plan.shape[1] - 1]
    known = pairs[matched] if matched.any() else cost
    low = float(pairs.min()) if pairs.size else 0.0
    high = min(float(known.max()), low + 3 * (float(np.median(known)) - low))
    span = max(1.3 * (high - low), 1e-9)
    shades = np.clip(1 - (cost - low) / span, 0, 1)
    written = used if cost.size > 200 else np.ones_like(used)
    _draw_matrix(axes, 0.9 * shades, cost, written, rows, columns, title or 'cost: dark is cheap')


def _draw_matrix(
    axes: Axes,
    shades: np.ndarray,
    values: np.ndarray,
    written: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> None:
    """Shades in [0, 1] with numbers where ``written``; columns of ground truths are named in their colours."""
    axes.imshow(shades, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=6)
    axes.set_xlabel('ground truth', fontsize=8)
    axes.set_ylabel('prediction', fontsize=8)
    axes.set_title(title, fontsize=8)
    axes.tick_params(length=2)
    colors = gt_colors(sum(name != 'bg' for name in columns))
    for label, color in zip(axes.get_xticklabels(), colors):
        label.set(color=text_color(color), fontweight='bold', bbox=dict(facecolor=color, edgecolor='none', pad=1))
    size = 7 if len(columns) < 8 else 5
    for row, column in np.argwhere(written):
        shade, value = shades[row, column], round(float(values[row, column]), 2) + 0.0  # not -0.00
        text = f'{value:.2f}' if abs(value) < 10 else f'{value:.0f}'
        axes.text(column, row, text, ha='center', va='center', fontsize=size, color='w' if shade > 0.6 else 'k')


def column_masses(axes: Axes, masses: Sequence[float]) -> None:
    """Write the mass of each column over all predictions above a plan."""
    above = axes.secondary_xaxis('top')
    texts = [f'{mass:.2f}' if mass < 10 else f'{mass:.0f}' for mass in masses]
    above.set_xticks(range(len(texts)), texts, fontsize=5, rotation=90 if len(texts) > 8 else 0)
    above.set_xlabel('mass of all predictions', fontsize=7)
    above.tick_params(length=2)
