"""How time and memory of matching and loss grow with the numbers of images, predictions and ground truths."""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from benchmark_detection_loss import detection_case, match_case
from benchmark_measure import keep, peak_memory, seconds
from tqdm import tqdm

SCALES = dict(
    B=(1, 2, 4, 8, 16, 32, 64), N=(100, 300, 1000, 3000, 10000, 30000, 100000), M=(1, 5, 20, 50, 100, 200, 500)
)


def scaling(args: argparse.Namespace) -> None:
    """Time and memory of matching, and of matching and loss, over B, N and M, 20 classes."""
    lines = ['### Scaling, C=20', '', '| B | N | M | match ms | match + loss ms | peak MB |', '|' + ' --- |' * 6]
    points: dict[str, list] = {}
    for name, values in SCALES.items():
        for value in tqdm(values, desc=f'scaling over {name}', leave=False, disable=None):
            size = {**dict(B=4, N=1000, M=20), name: value}
            case = detection_case(*size.values(), 20, args.device)
            both = partial(lambda m, i, t: torch.autograd.grad(m(i, t), list(i.values())), *case)
            row = list(size.values())
            for call in (partial(match_case, *case), both):
                call()
                row.append(1e3 * statistics.median(seconds(call, args.device) for _ in range(3)))
            row.append(peak_memory(both, args.device))
            points.setdefault(name, []).append(row)
            lines.append('| {} | {} | {} | {:.1f} | {:.1f} | {:.1f} |'.format(*row))
    keep('scaling', points, lines, args)
    if args.out:
        plot_scaling(points, args.out.with_name('images') / 'scaling.png')
        args.lines.extend(['![Time and memory over B, N and M](images/scaling.png)', ''])


def plot_scaling(points: dict[str, list], path: Path) -> None:
    """Draw time and memory against B, N and M, axes logarithmic, beside a line of slope 1."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    for column, (axis, (name, rows)) in enumerate(zip(axes, points.items())):
        x = [row[column] for row in rows]
        axis.loglog(x, [row[3] for row in rows], 'o-', label='match, ms')
        axis.loglog(x, [row[4] for row in rows], 's-', label='match + loss, forward + backward, ms')
        axis.loglog(x, [max(row[5], 0.1) for row in rows], '^-', label='peak memory, MB')
        axis.loglog(x, [rows[-1][4] * value / x[-1] for value in x], 'k:', label='slope 1')
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
