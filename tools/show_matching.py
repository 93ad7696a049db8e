"""Show what matching strategies do, in the manner of Figure 1 of De Plaen et al., CVPR 2023.

    python tools/show_matching.py                                          # the paper's worked example
    python tools/show_matching.py CONFIG [--checkpoint FILE] [--index 3]   # an annotated image and a detector

Draws the image with its boxes, the cost matrix, and the plan under each strategy; ``--text`` prints the numbers.
With a config, predictions, ground truths and costs are exactly those that the head hands to its assigner in training.
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import Optional

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

import uotod_mmdet  # noqa: F401  (registers our classes)
from uotod_mmdet.assigners import TransportAssigner
from uotod_mmdet.costs import make_batch

# De Plaen et al., CVPR 2023, Figure 1(b): cost 1 - GIoU of five predictions to ground truths A and B; background 0.8.
PAPER_COST = [[0.61, 0.96], [1.34, 0.88], [0.88, 0.89], [0.40, 0.65], [1.11, 0.73]]
PAPER_BACKGROUND_COST = 0.8
SINKHORN = 'reg=0.05,normalize_cost=False,tol=1e-6,num_iter=2000'
PAPER_STRATEGIES = [
    'ClosestTargetAssigner',
    'HungarianAssigner',
    'ClosestPredictionAssigner',
    f'UnbalancedSinkhornAssigner:{SINKHORN},reg_pred=100.0,reg_target=0.01',
    f'BalancedSinkhornAssigner:{SINKHORN}',
    f'UnbalancedSinkhornAssigner:{SINKHORN},reg_pred=0.01,reg_target=100.0',
]


def build_strategy(text: str, **defaults: object) -> TransportAssigner:
    """An assigner from ``Type`` or ``Type:argument=value,argument=value``."""
    name, _, arguments = text.partition(':')
    call = ast.parse(f'f({arguments})', mode='eval').body
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    if name == 'OTAAssigner':
        defaults.pop('match_costs', None)
    return TASK_UTILS.build({'type': f'uotod_mmdet.{name.split(".")[-1]}', **defaults, **given})


def title(text: str) -> str:
    """What stands above a plan: the strategy and the arguments that tell it from others."""
    name, _, arguments = text.partition(':')
    telling = ('reg', 'reg_pred', 'reg_target', 'gt_mass', 'source')
    shown = [part for part in arguments.split(',') if part.split('=')[0] in telling]
    return name.replace('Assigner', '') + ('\n' + ', '.join(shown) if shown else '')


def what_the_assigner_sees(cfg: Config, checkpoint: Optional[str], index: int) -> tuple:
    """Image (H, W, 3) RGB, and the arguments of the head's last call of its assigner on one training image."""
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not 0 <= index < len(dataset):
        raise SystemExit(f'--index must be in [0, {len(dataset)}), got {index}')
    item = dataset[index]
    model = MODELS.build(cfg.model).eval()
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    calls = []
    assigner = model.bbox_head.assigner
    assigner.assign = lambda *args, **kwargs: (
        calls.append((args, kwargs)) or type(assigner).assign(assigner, *args, **kwargs)
    )
    data = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]), True)
    with torch.no_grad():
        model(**data, mode='loss')
    if not calls:
        raise SystemExit(f'image {index} holds no objects to match; choose another --index')
    args, kwargs = calls[-1]
    pred = kwargs.get('pred_instances', args[0] if args else None)
    return item['inputs'].permute(1, 2, 0).numpy()[:, :, ::-1], pred, item['data_samples'], assigner


def draw_matrix(axes: plt.Axes, matrix: np.ndarray, rows: list[str], columns: list[str], name: str, top: float) -> None:
    """A matrix as shades with its numbers."""
    axes.imshow(matrix, cmap='Blues', vmin=min(0.0, matrix.min()), vmax=top, aspect='auto')
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(name, fontsize=9)
    if matrix.size <= 400:
        size = 8 if matrix.shape[1] < 8 else 5
        for (row, column), value in np.ndenumerate(matrix):
            dark = value > 0.6 * top
            axes.text(column, row, f'{value:.2f}', ha='center', va='center', fontsize=size, color='w' if dark else 'k')


def draw_image(axes: plt.Axes, image: np.ndarray, gt_bboxes: np.ndarray, boxes: np.ndarray, rows: list[str]) -> None:
    """The image with ground truths (solid) and the listed predictions (dashed)."""
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_title('ground truths (solid), predictions (dashed)', fontsize=9)
    for kind, names, style, color in ((gt_bboxes, gt_names(len(gt_bboxes)), '-', 'lime'), (boxes, rows, '--', 'cyan')):
        for (x1, y1, x2, y2), name in zip(kind, names):
            axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=style, lw=1.2))
            axes.text(x1, y1, name, color=color, fontsize=7, va='bottom', clip_on=True)
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))


def gt_names(count: int) -> list[str]:
    """A, B, ..., Z, then numbers."""
    return [chr(ord('A') + index) if index < 26 else str(index) for index in range(count)]


def print_matrix(name: str, matrix: np.ndarray, rows: list[str], columns: list[str]) -> None:
    print(f'\n{name}\n' + ' ' * 8 + ''.join(f'{column:>12}' for column in columns))
    for row, values in zip(rows, matrix):
        print(f'{row:>8}' + ''.join(f'{value:12.6f}' for value in values))


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', help='config of a detector; without it, the example of the paper')
    parser.add_argument('--checkpoint', help='weights of the detector; without it, as initialised')
    parser.add_argument('--index', type=int, default=0, help='which training image')
    parser.add_argument(
        '--strategies',
        nargs='+',
        metavar='TYPE[:ARG=VALUE,...]',
        help='assigners of uotod_mmdet, such as HungarianAssigner or "BalancedSinkhornAssigner:reg=0.05"',
    )
    parser.add_argument('--rows', type=int, default=16, help='predictions to show at most, those with most mass')
    parser.add_argument('--text', action='store_true', help='print the numbers')
    parser.add_argument('--out', type=Path, default=Path('matching.png'), help='the picture')
    args = parser.parse_args(arguments)
    init_default_scope('mmdet')

    if args.config is None:
        image, cost = None, torch.tensor(PAPER_COST, dtype=torch.float64)
        background_cost = PAPER_BACKGROUND_COST
        texts = args.strategies or PAPER_STRATEGIES
        common = dict(match_costs=dict(type='IoUCost'), background_cost=background_cost)
        strategies = [build_strategy(text, **common) for text in texts]
        plans = [strategy.match(cost[None])[0] for strategy in strategies]
    else:
        cfg = Config.fromfile(args.config)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        image, pred, sample, assigner = what_the_assigner_sees(cfg, args.checkpoint, args.index)
        if not isinstance(assigner, TransportAssigner):
            raise SystemExit(
                f'{args.config} uses {type(assigner).__name__}, which has no plan to show: give a config with an '
                'assigner of uotod_mmdet.'
            )
        background_cost = assigner.background_cost
        batch = make_batch([pred], [sample.gt_instances], [sample.metainfo], assigner.box_source)
        common = dict(match_costs=assigner.match_costs, background_cost=background_cost)
        texts = [type(assigner).__name__, *(args.strategies or ['HungarianAssigner', 'ClosestTargetAssigner'])]
        strategies = [assigner, *(build_strategy(text, **common) for text in texts[1:])]
        plans = [strategy.plan(batch)[1][0] for strategy in strategies]
        cost = assigner.plan(batch)[0][0]

    num_gts = cost.size(1)
    matched = torch.stack([plan[:, :num_gts].sum(1) for plan in plans]).amax(0)
    shown = matched.topk(min(args.rows, len(cost))).indices.sort().values if image is not None else slice(None)
    rows = [str(index + 1) for index in range(len(cost))]
    rows = [rows[int(index)] for index in shown] if image is not None else rows
    columns = [*gt_names(num_gts), 'bg']
    full_cost = torch.cat([cost, torch.full_like(cost[:, :1], background_cost)], 1)[shown].numpy()

    width = len(plans) + 1 + (image is not None)
    per_row = min(width, 4)
    figure, grid = plt.subplots(
        -(-width // per_row), per_row, figsize=(3.6 * per_row, 3.8 * -(-width // per_row)), constrained_layout=True
    )
    panels = list(np.atleast_1d(grid).flat)
    for axes in panels[width:]:
        axes.set_axis_off()
    if image is not None:
        draw_image(panels.pop(0), image, batch.gt_bboxes[0].numpy(), batch.bboxes[0][shown].numpy(), rows)
    draw_matrix(panels[0], full_cost, rows, columns, 'cost', float(np.quantile(full_cost, 0.9)) + 1e-9)
    for axes, text, plan in zip(panels[1:], texts, plans):
        draw_matrix(axes, plan[shown].numpy(), rows, columns, title(text), 1.0)
    figure.savefig(args.out, dpi=110)
    plt.close(figure)

    if args.text:
        print_matrix('cost', full_cost, rows, columns)
        for text, plan in zip(texts, plans):
            print_matrix(title(text).replace('\n', ': '), plan[shown].numpy(), rows, columns)
    print(f'\nPicture: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
