"""Measure ours against others in one run: ``python tools/benchmark.py detection-loss``.

Both sides are measured in the same process, taking turns, and the table shows medians, spread and ratios. Peak memory
is what the process grew by at its highest during one call (``--device cuda``: what torch allocated).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor
from tqdm import tqdm

import uotod_mmdet  # noqa: F401  (registers our classes)
from uotod_mmdet.assigners import match_batch
from uotod_mmdet.costs import make_batch
from uotod_mmdet.registry import MODELS


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(call: Callable[[], object], device: str) -> float:
    """MB that one call needs at its highest beyond what is there before."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(name: str) -> int:
        (line,) = (line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    Path('/proc/self/clear_refs').write_text('5')  # resets the highest resident size
    before = status('VmRSS')
    call()
    return (status('VmHWM') - before) / 2**10


def compare(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Median, spread and peak memory of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm up
    for _ in tqdm(range(repeats), desc='rounds', leave=False):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    result = {}
    for name, call in calls.items():
        quarters = statistics.quantiles(times[name], n=4)
        result[name] = dict(
            median_ms=1e3 * statistics.median(times[name]),
            low_ms=1e3 * quarters[0],
            high_ms=1e3 * quarters[2],
            peak_mb=peak_memory(call, device),
        )
    return result


def show(title: str, result: dict[str, dict[str, float]], reference: str) -> None:
    """Print a table; ratios are the reference's number by the row's."""
    base = result[reference]
    print(f'\n{title}')
    print(f'{"":34}{"median ms":>10}{"quartiles":>18}{"times faster":>14}{"peak MB":>10}{"times less":>12}')
    for name, row in result.items():
        spread = f'{row["low_ms"]:.1f} - {row["high_ms"]:.1f}'
        faster = base['median_ms'] / row['median_ms']
        less = base['peak_mb'] / max(row['peak_mb'], 1e-9)
        print(f'{name:34}{row["median_ms"]:10.1f}{spread:>18}{faster:14.1f}{row["peak_mb"]:10.1f}{less:12.1f}')


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 0.7
    return torch.cat([corner, corner + 0.05 + torch.rand(*shape, 2, generator=generator) * 0.25], -1)


def dense_detection_loss(logits: Tensor, boxes: Tensor, target: dict, plan: Tensor) -> Tensor:
    """DetectionLoss with softmax cross-entropy, L1 and GIoU, on tensors of predictions x ground truths x classes."""
    labels, gt_boxes = target['labels'], target['boxes']
    batch, preds, columns = logits.shape
    gts = labels.size(1)
    all_labels = torch.cat([labels, torch.full_like(labels[:, :1], columns - 1)], 1)
    rows = logits[:, :, None].expand(-1, -1, gts + 1, -1).reshape(-1, columns)
    cls = F.cross_entropy(rows, all_labels[:, None].expand(-1, preds, -1).reshape(-1), reduction='none')
    cls = (plan * cls.view(plan.shape)).sum() / plan.sum()
    pair_boxes = boxes[:, :, None].expand(-1, -1, gts, -1).reshape(-1, 4)
    pair_gts = gt_boxes[:, None].expand(-1, preds, -1, -1).reshape(-1, 4)
    top_left, bottom_right = (
        torch.maximum(pair_boxes[:, :2], pair_gts[:, :2]),
        torch.minimum(pair_boxes, pair_gts)[:, 2:],
    )
    overlap = (bottom_right - top_left).clamp(min=0).prod(1)
    area = (pair_boxes[:, 2:] - pair_boxes[:, :2]).prod(1) + (pair_gts[:, 2:] - pair_gts[:, :2]).prod(1)
    hull = (torch.maximum(pair_boxes, pair_gts)[:, 2:] - torch.minimum(pair_boxes, pair_gts)[:, :2]).prod(1)
    union = area - overlap
    loc = (pair_boxes - pair_gts).abs().sum(1) + 1 - overlap / union + (hull - union) / hull
    matched = plan[:, :, :-1]
    return cls + (matched * loc.view(matched.shape)).sum() / matched.sum()


def detection_loss(args: argparse.Namespace) -> dict:
    """DetectionLoss, matching included, against the dense formula on a plan that is given to it."""
    generator = torch.Generator().manual_seed(0)
    batch, preds, gts, classes = args.batch, args.preds, args.gts, args.classes
    input = dict(
        pred_logits=torch.randn(batch, preds, classes + 1, generator=generator),
        pred_boxes=random_boxes(batch, preds, generator=generator),
    )
    target = dict(
        labels=torch.randint(0, classes, (batch, gts), generator=generator),
        boxes=random_boxes(batch, gts, generator=generator),
    )
    input = {name: value.to(args.device).requires_grad_() for name, value in input.items()}
    target = {name: value.to(args.device) for name, value in target.items()}
    costs = [
        dict(type='ClassificationCost'),
        dict(type='BBoxL1Cost', weight=5.0),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    module = MODELS.build(
        dict(
            type='DetectionLoss',
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=[dict(type='L1Loss'), dict(type='GIoULoss')],
            assigner=dict(type='BalancedSinkhornAssigner', match_costs=costs),
        )
    )
    instances = [InstanceData(labels=labels, bboxes=boxes) for labels, boxes in zip(target['labels'], target['boxes'])]
    predictions = dict(scores=input['pred_logits'], bboxes=input['pred_boxes'])
    plan = match_batch(module.assigner, make_batch(predictions, instances, [dict(img_shape=(1, 1))] * batch))

    def ours() -> Tensor:
        loss = module(input, target)
        return torch.autograd.grad(loss, list(input.values()))

    def dense() -> Tensor:
        loss = dense_detection_loss(input['pred_logits'], input['pred_boxes'], target, plan)
        return torch.autograd.grad(loss, list(input.values()))

    values = module(input, target).item(), dense_detection_loss(*input.values(), target, plan).item()
    result = compare(
        {'dense formula, without matching': dense, 'DetectionLoss, with matching': ours}, args.repeats, args.device
    )
    title = f'DetectionLoss, forward + backward, B={batch} N={preds} M={gts} C={classes}, float32'
    show(title, result, 'dense formula, without matching')
    print(f'values: dense {values[1]:.6f}, ours {values[0]:.6f}')
    return dict(title=title, rows=result, values=values)


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure ours against others in one run')
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('detection-loss', help=detection_loss.__doc__)
    for name, value in dict(batch=8, preds=900, gts=50, classes=80).items():
        command.add_argument(f'--{name}', type=int, default=value)
    command.set_defaults(run=detection_loss)
    for command in commands.choices.values():
        command.add_argument('--repeats', type=int, default=15, help='rounds, each measuring both sides once')
        command.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
        command.add_argument('--json', type=Path, help='write the numbers to this file, too')
    args = parser.parse_args()
    init_default_scope('mmdet')
    print(f'torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads')
    result = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
