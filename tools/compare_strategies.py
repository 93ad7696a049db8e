"""Train a detector once with each strategy and table the AP: ``python tools/compare_strategies.py``.

Trains tiny GFL on Color Boxes small with the strategies that suit dense heads and with stock ATSSAssigner, all from the
same seed with the same losses, and writes a Markdown table. A finished run is not repeated, so that a study that was
interrupted goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OVERLAPS = {
    'GIoU': "dict(type='IoUCost', iou_mode='giou', weight=1.0)",
    'log IoU': "dict(type='uotod_mmdet.LogIoUCost', weight=0.5)",
}


def costs(overlap: str) -> str:
    """Match costs of a dense head: overlap, distance of centres, and a constant outside the box."""
    return (
        f"[{OVERLAPS[overlap]}, dict(type='uotod_mmdet.PriorCenterCost', weight=1.0), "
        "dict(type='uotod_mmdet.InsideGTCost', weight=20.0)]"
    )


MASS = 'gt_mass=9, reg=0.1, normalize_cost=False, tol=0.05'
ASSIGNERS = {
    'ATSSAssigner (stock)': "dict(type='ATSSAssigner', topk=9)",
    'UnbalancedSinkhorn': f"""dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', {MASS},
        match_costs={costs('GIoU')}, background_cost=0.0, reg_pred=None, reg_target=1.0)""",
    'UnbalancedSinkhorn, log IoU': f"""dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', {MASS},
        match_costs={costs('log IoU')}, background_cost=1.2, reg_pred=None, reg_target=2.0)""",
    'BalancedSinkhorn': f"""dict(type='uotod_mmdet.BalancedSinkhornAssigner', {MASS},
        match_costs={costs('GIoU')})""",
    'OTA': "dict(type='uotod_mmdet.OTAAssigner', center_radius=0.3)",
    'ClosestTarget': f"""dict(type='uotod_mmdet.ClosestTargetAssigner',
        match_costs={costs('GIoU')}, background_cost=0.0)""",
    'WeightedSum of Unbalanced and ClosestTarget': f"""dict(type='uotod_mmdet.WeightedSumAssigner',
        match_costs={costs('GIoU')}, background_cost=0.0,
        strategies=[
            dict(type='uotod_mmdet.UnbalancedSinkhornAssigner', {MASS}, reg_pred=None, reg_target=1.0),
            dict(type='uotod_mmdet.ClosestTargetAssigner'),
        ])""",
}
CONFIG = """
_base_ = {base!r}
max_epochs = {epochs}
assigner = {assigner}
model = dict(
    bbox_head=dict(
        loss_cls=dict(type='uotod_mmdet.QualityFocalLoss'),
        loss_dfl=dict(type='uotod_mmdet.DistributionFocalLoss'),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, **assigner)),
)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=max_epochs, T_max=max_epochs - 1,
         convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(save_best=None, interval=max_epochs))
"""


def run(name: str, args: argparse.Namespace) -> dict:
    """Train with one strategy, unless that was done, and return its line of the table."""
    work_dir = args.work_dir / ''.join(c for c in name.lower() if c.isalnum())
    config, result = work_dir / 'config.py', work_dir / 'result.json'
    text = CONFIG.format(
        base=str(ROOT / 'configs/color_boxes/gfl_tiny_atss.py'), epochs=args.epochs, assigner=ASSIGNERS[name]
    )
    if not (result.exists() and config.read_text() == text):
        work_dir.mkdir(parents=True, exist_ok=True)
        config.write_text(text)
        run_dir = work_dir / 'run'
        with open(work_dir / 'log.txt', 'w') as log:
            subprocess.run(
                [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(run_dir)],
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS=str(args.threads)),
            )
        log = max(run_dir.glob('*/vis_data/scalars.json'))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        line = {key.split('/')[-1]: value for key, value in lines[-1].items() if 'mAP' in key}
        line['seconds'] = statistics.median(line['time'] for line in lines if 'loss' in line)
        result.write_text(json.dumps(line))
    print(f'{name}: {result.read_text()}', flush=True)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--strategies', nargs='+', choices=list(ASSIGNERS), default=list(ASSIGNERS))
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_strategies'))
    parser.add_argument('--jobs', type=int, default=1, help='runs at once')
    parser.add_argument('--threads', type=int, default=2, help='threads of each run')
    parser.add_argument('--out', type=Path, help='Markdown file for the table')
    args = parser.parse_args()
    args.work_dir = args.work_dir.absolute()
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda name: run(name, args), args.strategies))
    table = ['| assigner | mAP | AP50 | AP75 |', '| --- | --- | --- | --- |']
    for name, line in zip(args.strategies, results):
        scores = ' | '.join(f'{line[key]:.3f}' for key in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75'))
        table.append(f'| {name} | {scores} |')
    print('\n' + '\n'.join(table))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            '# Strategies on a dense head\n\n'
            'Tiny GFL on Color Boxes small (1200 images to train on, 200 to evaluate), '
            f'{args.epochs} epochs, one seed, COCO AP.\n'
            f'Made by `python tools/compare_strategies.py --epochs {args.epochs} --out docs/strategies.md`.\n\n'
            + '\n'.join(table)
            + '\n\nGFLHead gives its assigner priors only; OTA is meant for heads that give predictions.\n'
        )


if __name__ == '__main__':
    main()
