"""Plots of a study: AP and other curves over the epochs with bands, and AP with and without NMS."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from study_file import Study
from study_stats import Results, done, estimate, values

SUFFIX = '_without_nms'


def draw_study(study: Study, results: Results, out: Path) -> None:
    """For each data set: curves of the arms of each baseline, and the last AP with and without NMS if asked."""
    bases = list(dict.fromkeys(study.baseline_of(arm) for arm in study.arms))
    groups = [[arm for arm in study.arms if study.baseline_of(arm) == base] for base in bases]
    with_nms = f'AP{SUFFIX}' in study.metrics
    # Other curves stand beside AP, each baseline in a row of its own.
    chunks = [[group] for group in groups] if study.curves else [groups]
    columns = len(chunks[0]) * (1 + len(study.curves)) + with_nms
    # Data sets that need one picture each stand side by side.
    shape = (len(study.data) * len(chunks), columns) if columns > 1 else (1, len(study.data))
    size = (5.2 * shape[1], 3.9 * shape[0])
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, constrained_layout=True)
    rows = [(data, chunk) for data in study.data for chunk in chunks]
    for row, (data, chunk) in zip(grid if columns > 1 else grid.T, rows):
        drawn = [(group, name) for group in chunk for name in (None, *study.curves)]
        for axes, (group, name) in zip(row, drawn):
            _draw_curves(axes, results, data, group, study.baseline_of(group[0]), name)
        if with_nms:
            _draw_nms(row[-1], results, data, list(study.arms))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100, metadata={'Software': None})
    plt.close(figure)


def _draw_curves(axes: Axes, results: Results, data: str, arms: list[str], base: str, name: str | None) -> None:
    """Mean AP (None) or another curve at each place that all runs of an arm have, with its interval."""
    colors = iter(plt.get_cmap('tab10').colors * 10)
    for arm in arms:
        lines = done(results, arm, data).values()
        curves = [dict(line['curve'] if name is None else line['curves'][name]) for line in lines]
        color = 'black' if arm == base else next(colors)
        places = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [estimate([[curve[place] for curve in curves]]) for place in places]
        axes.plot(places, [point.mean for point in points], '.-', color=color, lw=1.6, ms=5, label=arm)
        if points and points[0].low is not None:
            low, high = [max(0, point.low) for point in points], [point.high for point in points]
            axes.fill_between(places, low, high, color=color, alpha=0.13, lw=0)
    axes.set(title=data, xlabel='epoch', ylabel='AP' if name is None else name, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_nms(axes: Axes, results: Results, data: str, arms: list[str]) -> None:
    for metric, label, color, shift in (
        ('AP', 'with NMS', 'tab:blue', -0.1),
        (f'AP{SUFFIX}', 'without', 'tab:red', 0.1),
    ):
        found = [(index, estimate([values(results, arm, data, metric)])) for index, arm in enumerate(arms)]
        found = [(index, point) for index, point in found if point is not None]
        bars = [0 if point.low is None else point.mean - point.low for _, point in found]
        places, means = [index + shift for index, _ in found], [point.mean for _, point in found]
        axes.errorbar(places, means, bars, fmt='o', ms=5, capsize=3, color=color, label=label)
    axes.set_xticks(range(len(arms)), arms, rotation=30, ha='right', fontsize=8)
    axes.set(title=f'{data}: AP with and without NMS', ylabel='AP', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
