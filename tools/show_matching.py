"""Show what matching strategies do, in the manner of Figure 1 of De Plaen et al., CVPR 2023.

    python tools/show_matching.py                                          # the paper's worked example
    python tools/show_matching.py CONFIG [--checkpoint FILE] [--index 3]   # an annotated image and a detector

Draws the image with its boxes, the cost matrix, and the plan under each strategy; ``--text`` prints the numbers.
With a config, predictions, ground truths and costs are those that the head hands to its assigner in training, in its
last decoder layer if there are several.
"""

import argparse
import ast
import copy
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmengine.config import Config, DictAction
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, set_random_seed
from torch import nn

import uotod_mmdet  # noqa: F401  (registers our classes)
from uotod_mmdet.assigners import TransportAssigner
from uotod_mmdet.hooks.checkpoint_fit_hook import check_checkpoint
from uotod_mmdet.launch import existing_file
from uotod_mmdet.visualization import Record, matchings_of, why_not
from uotod_mmdet.visualization.figures import (
    ROW,
    draw_cost,
    draw_plan,
    draw_scene,
    gt_names,
    heaviest_rows,
    image_of,
    matrix_width,
)

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
BESIDE_A_DETECTOR = ['HungarianAssigner', 'ClosestTargetAssigner', 'BalancedSinkhornAssigner']


def build_strategy(text: str, **defaults: object) -> TransportAssigner:
    """An assigner from ``Type`` or ``Type:argument=value,argument=value``.

    Raises:
        SystemExit: If that is not its form, or there is no such type or argument.
    """
    name, _, arguments = text.partition(':')
    try:
        call = ast.parse(f'f({arguments})', mode='eval').body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if not isinstance(call, ast.Call) or call.args or None in given:
            raise ValueError
    except (SyntaxError, ValueError, AttributeError) as error:
        raise SystemExit(
            f'--strategies {text}: after the type write argument=value, separated by commas and without spaces, texts '
            "in quotes, as in BalancedSinkhornAssigner:reg=0.05,gt_mass='dynamic_k'."
        ) from error
    if name == 'OTAAssigner':
        defaults.pop('match_costs', None)
    try:
        return TASK_UTILS.build({'type': f'uotod_mmdet.{name.split(".")[-1]}', **defaults, **given})
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f'--strategies {text}: {error.args[0]}') from error


def title(text: str) -> str:
    """Title of a plan: the strategy and its distinguishing arguments."""
    name, _, arguments = text.partition(':')
    telling = ('reg', 'reg_pred', 'reg_target', 'gt_mass', 'source')
    shown = [part for part in arguments.split(',') if part.split('=')[0] in telling]
    return name.replace('Assigner', '') + ('\n' + ', '.join(shown) if shown else '')


def build_detector(cfg: Config, checkpoint: Optional[str]) -> nn.Module:
    """The detector with the weights of the checkpoint, or random ones: pretrained weights are not downloaded."""
    cfg = copy.deepcopy(cfg.model)
    without_pretrained(cfg)
    model = MODELS.build(cfg)
    MMLogger.get_current_instance().setLevel('WARNING')  # init_weights lists every parameter
    model.init_weights()
    if checkpoint:
        try:
            check_checkpoint(model, load_checkpoint(model, existing_file(checkpoint, '--checkpoint'), 'cpu'))
        except ValueError as error:
            raise SystemExit(f'--checkpoint {checkpoint}: {error}') from error
    refusal = why_not(model)
    if refusal:
        raise SystemExit(refusal)
    return model


def without_pretrained(cfg: dict) -> None:
    """Take ``init_cfg=dict(type='Pretrained', ...)`` out of a model's config."""
    for part in cfg.values():
        if isinstance(part, dict):
            if 'Pretrained' in str((part.get('init_cfg') or {}).get('type', '')):
                part.init_cfg = None
            without_pretrained(part)


def assigner_of(head: nn.Module) -> Any:
    """The assigner of a head; of TOODHead that of task alignment, and its epoch is one that trains by it."""
    if hasattr(head, 'alignment_assigner'):
        MessageHub.get_current_instance().update_info('epoch', head.initial_epoch)
        return head.alignment_assigner
    return head.assigner


def matching_of_an_image(cfg: Config, checkpoint: Optional[str], index: Optional[int]) -> tuple:
    """A training image as its pipeline packs it, the record of the head's last layer on it, and the assigner."""
    model = build_detector(cfg, checkpoint)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if index is not None and not 0 <= index < len(dataset):
        raise SystemExit(f'--index must be in [0, {len(dataset)}), got {index}')
    for tried in range(len(dataset)) if index is None else [index]:
        item = dataset[tried]
        if len(item['data_samples'].gt_instances):
            break
    else:
        where = 'no image of the training set holds' if index is None else f'image {index} does not hold'
        raise SystemExit(f'{where} an object to match; choose another --index, or look at the pipeline and metainfo')
    assigner = assigner_of(model.bbox_head)
    (records,) = matchings_of(model, [item])
    (record,) = (record for record in records if record.layer == 'last')
    return item, record, assigner


def draw(
    out: Path,
    item: Optional[dict],
    record: Optional[Record],
    shown: np.ndarray,
    cost: np.ndarray,
    plans: list[np.ndarray],
    titles: list[str],
) -> None:
    """Draw the image, if there is one, the cost and the plans, (N, M + 1) all, of which rows ``shown``.

    Raises:
        SystemExit: If ``out`` cannot be written.
    """
    rows, columns = [str(index + 1) for index in shown], [*gt_names(cost.shape[1] - 1), 'bg']
    height = max(3.6, ROW * len(shown) + 1.4)
    sizes = [matrix_width(len(columns))] * (1 + len(plans))
    if item is not None:
        image = image_of(item)
        sizes.insert(0, min((height - 1.3) * image.shape[1] / image.shape[0], 6.0))
    lines = -(-len(sizes) // (3 if max(sizes) > 4 else 4))
    parts = [part.tolist() for part in np.array_split(sizes, lines)]
    figure = Figure(figsize=(max(map(sum, parts)), height * lines), layout='constrained')
    panels = []
    for line, part in zip(np.ravel(figure.subfigures(lines, 1)), parts):
        panels += list(np.ravel(line.subplots(1, len(part), width_ratios=part)))
    if item is not None:
        draw_scene(panels.pop(0), image, record, sizes[0], shown)
    draw_cost(panels.pop(0), cost[shown], plans[0][shown], rows, columns)
    for axes, plan, name in zip(panels, plans, titles):
        draw_plan(axes, plan[shown], rows, columns, f'mass: {name}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise SystemExit(f'--out {out} cannot be written: {error}') from error


def print_matrix(name: str, matrix: np.ndarray, rows: list[str]) -> None:
    columns = [*gt_names(matrix.shape[1] - 1), 'bg']
    print(f'\n{name}\n' + ' ' * 8 + ''.join(f'{column:>12}' for column in columns))
    for row, values in zip(rows, matrix):
        print(f'{row:>8}' + ''.join(f'{value:12.6f}' for value in values))


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', help='config of a detector; without it, the example of the paper')
    parser.add_argument('--checkpoint', help='weights of the detector; without it, random ones')
    parser.add_argument('--index', type=int, help='which training image; default: the first one that holds objects')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, such as train_dataloader.dataset.data_root=FOLDER',
    )
    parser.add_argument(
        '--strategies',
        nargs='+',
        metavar='TYPE[:ARG=VALUE,...]',
        help='assigners of uotod_mmdet, such as HungarianAssigner or "BalancedSinkhornAssigner:reg=0.05"',
    )
    parser.add_argument(
        '--rows', type=int, default=20, help='predictions to show at most, those matched most (%(default)s)'
    )
    parser.add_argument('--text', action='store_true', help='print the numbers')
    parser.add_argument('--out', type=Path, default=Path('matching.png'), help='the picture (%(default)s)')
    args = parser.parse_args(arguments)
    if args.rows < 1:
        parser.error(f'--rows must be at least 1, got {args.rows}')
    init_default_scope('mmdet')

    if args.config is None:
        item, record, cost = None, None, torch.tensor(PAPER_COST, dtype=torch.float64)
        background_cost = PAPER_BACKGROUND_COST
        texts = args.strategies or PAPER_STRATEGIES
        common = dict(match_costs=dict(type='IoUCost'), background_cost=background_cost)
        strategies = [build_strategy(text, **common) for text in texts]
        plans = [strategy.match(cost[None])[0] for strategy in strategies]
    else:
        cfg = Config.fromfile(existing_file(args.config, 'config'))
        cfg.merge_from_dict(args.cfg_options or {})
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        set_random_seed(0)
        item, record, assigner = matching_of_an_image(cfg, args.checkpoint, args.index)
        batch, plan = record.batch, record.plan
        background_cost = getattr(assigner, 'background_cost', 0.0)
        # Assigners that rank by rules of their own are shown beside the overlaps.
        match_costs = getattr(assigner, 'match_costs', None) or dict(type='IoUCost', iou_mode='giou')
        common = dict(match_costs=match_costs, background_cost=background_cost)
        name = type(assigner).__name__
        others = [other for other in BESIDE_A_DETECTOR if other != name][:2]
        texts = [name, *(args.strategies or others)]
        strategies = [build_strategy(text, **common) for text in texts[1:]]
        plans = [plan, *(strategy.match_batch(batch).plan[0] for strategy in strategies)]
        cost = record.cost
        if cost is None:
            cost = build_strategy('HungarianAssigner', **common).match_batch(batch).cost[0]

    full_cost = torch.cat([cost, torch.full_like(cost[:, :1], background_cost)], 1).numpy()
    plans = [plan.numpy() for plan in plans]
    shown = np.arange(len(cost))
    if item is not None:  # first those that the detector itself matches
        shown = heaviest_rows(sum(plans) + len(plans) * plans[0], args.rows)
    draw(args.out, item, record, shown, full_cost, plans, [title(text) for text in texts])

    if args.text:
        for name, matrix in zip(['cost', *(title(text).replace('\n', ': ') for text in texts)], [full_cost, *plans]):
            print_matrix(name, matrix[shown], [str(index + 1) for index in shown])
    print(f'\nPicture: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
