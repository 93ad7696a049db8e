"""Measure ours against others in one run: ``python tools/benchmark.py all``, or one of its parts.

Both sides are measured in the same process, taking turns; tables show medians, quartiles and ratios. A turn begins with
two calls that are not timed, and freed memory stays in the process, so that no side pays for another's. Peak memory is
what the process grew by at its highest during one call (``--device cuda``: what torch allocated). Peers: mmdet's
losses, assigner and heads; POT's batch solver (pip install POT); lapx's batch solver (pip install lapx); uotod's
DetectionLoss (pip install --no-deps uotod) and the formulas behind it.

Each part is in a file of its own, tools/benchmark_<subject>.py; tools/benchmark_measure.py does the measuring.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from benchmark_detection_loss import detection_loss
from benchmark_heads import heads, training_step
from benchmark_losses import losses
from benchmark_matching import matching
from benchmark_measure import keep_memory
from benchmark_points import points
from benchmark_scaling import scaling
from benchmark_solvers import solvers
from mmengine.registry import init_default_scope

from uotod_mmdet.ops import native

PARTS = {
    'losses': losses,
    'solvers': solvers,
    'matching': matching,
    'points': points,
    'heads': heads,
    'detection-loss': detection_loss,
    'training-step': training_step,
    'scaling': scaling,
}


def machine() -> str:
    """Words that describe the machine."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    processor = names[0] if names else platform.machine()
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    threads = torch.get_num_threads()
    compiled = 'with' if native.library else 'without'
    versions = f'torch {torch.__version__}, Python {platform.python_version()}'
    return f'{processor}, {threads} threads{gpu}, {versions}, {compiled} the compiled part'


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure ours against others in one run')
    parser.add_argument('part', choices=('all', *PARTS), help='what to measure')
    parser.add_argument('--repeats', type=int, default=15, help='rounds, each measuring every side once (%(default)s)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where to compute (%(default)s)')
    parser.add_argument('--json', type=Path, help='write the numbers to this file, too')
    parser.add_argument('--out', type=Path, help='write the tables to this Markdown file, too')
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error('--repeats must be at least 2')
    args.lines, args.numbers = [], {}
    init_default_scope('mmdet')
    if args.device == 'cpu':
        keep_memory()
    print(machine())
    for name, part in PARTS.items():
        if args.part in ('all', name):
            part(args)
    if args.json:
        args.json.write_text(json.dumps(dict(machine=machine(), **args.numbers), indent=1))
    if args.out:
        command = f'python tools/benchmark.py {args.part} --repeats {args.repeats} --out {args.out}'
        head = [
            '# Benchmarks',
            '',
            f'Made by `{command}` on {args.device}:',
            f'{machine()}.',
            f'Medians of {args.repeats} rounds in which all sides take turns: two calls untimed, one timed. Freed',
            'memory stays in the process. Ratios are to the first row.',
            '',
        ]
        args.out.write_text('\n'.join([*head, *args.lines]))


if __name__ == '__main__':
    main()
