"""Measure ours against others in one run: ``python tools/benchmark.py all``, or one of its parts.

Both sides are measured in the same process, taking turns; tables show medians, quartiles and ratios. A turn begins with
two calls that are not timed, and freed memory stays in the process, so that no side pays for another's. Peak memory is
what the process grew by at its highest during one call (``--device cuda``: what torch allocated). Peers: mmdet's
losses, assigner and heads; POT's batch solver (pip install POT); lapx's batch solver (pip install lapx); uotod's
DetectionLoss (pip install --no-deps uotod) and the formulas behind it.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Optional

import mmdet.models.losses as stock
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, TASK_UTILS
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

import uotod_mmdet.losses as ours
from uotod_mmdet.assigners import match_batch
from uotod_mmdet.costs import make_batch
from uotod_mmdet.datasets.color_boxes import make_color_boxes
from uotod_mmdet.ops import native
from uotod_mmdet.ot import sinkhorn
from uotod_mmdet.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
Calls = dict[str, Callable[[], object]]


def seconds(call: Callable[[], object], device: str) -> float:
    """How long one call takes."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def keep_memory() -> None:
    """Keep freed memory in the process: glibc gives it back during some later call, whoever left it."""
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_threshold, 1 << 25)


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

    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)  # or what was freed before hides what is needed now
    Path('/proc/self/clear_refs').write_text('5')  # resets the highest resident size
    before = status('VmRSS')
    call()
    return (status('VmHWM') - before) / 2**10


def compare(title: str, calls: Calls, args: argparse.Namespace) -> None:
    """Measure the calls, taking turns, and print and keep a table; ratios are to the first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(args.repeats), desc=title, leave=False, disable=None):
        for name, call in calls.items():
            call(), call()
            times[name].append(1e3 * seconds(call, args.device))
    rows = {name: dict(median_ms=statistics.median(times[name])) for name in calls}
    base = next(iter(rows.values()))
    lines = [
        f'### {title}',
        '',
        '| | median ms | quartiles | times faster | peak MB | times less |',
        '|' + ' --- |' * 6,
    ]
    for name, call in calls.items():
        row, quarters = rows[name], statistics.quantiles(times[name], n=4)
        row.update(low_ms=quarters[0], high_ms=quarters[2], peak_mb=peak_memory(call, args.device))
        row.update(
            times_faster=base['median_ms'] / row['median_ms'], times_less=base['peak_mb'] / max(row['peak_mb'], 0.1)
        )
        lines.append(
            '| {} | {median_ms:.1f} | {low_ms:.1f} - {high_ms:.1f} | {times_faster:.2f} | {peak_mb:.1f} '
            '| {times_less:.1f} |'.format(name, **row)
        )
    keep(title, rows, lines, args)


def keep(title: str, numbers: object, lines: list[str], args: argparse.Namespace) -> None:
    print('\n'.join(lines) + '\n', flush=True)
    args.lines.extend([*lines, ''])
    args.numbers[title] = numbers


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 0.7
    return torch.cat([corner, corner + 0.05 + torch.rand(*shape, 2, generator=generator) * 0.25], -1)


def losses(args: argparse.Namespace) -> None:
    """QFL and VFL at 67200 x 80, DFL at 40000 x 17, forward + backward, against mmdet's."""
    generator = torch.Generator().manual_seed(0)
    rows, classes = 67200, 80
    logits = (torch.randn(rows, classes, generator=generator) - 3).to(args.device).requires_grad_()
    label, score, quality = torch.full((rows,), classes), torch.zeros(rows), torch.zeros(rows, classes)
    chosen = torch.randperm(rows, generator=generator)[:600]
    label[chosen] = torch.randint(0, classes, (600,), generator=generator)
    score[chosen] = torch.rand(600, generator=generator)
    quality[chosen, label[chosen]] = score[chosen]
    corners = torch.randn(40000, 17, generator=generator).to(args.device).requires_grad_()
    distances = torch.rand(40000, generator=generator) * 15.9
    label, score, quality, distances = (values.to(args.device) for values in (label, score, quality, distances))

    def step(loss: torch.nn.Module, pred: Tensor, target: object) -> object:
        return torch.autograd.grad(loss(pred, target, avg_factor=600.0), pred)

    for name, pred, target in (
        ('QualityFocalLoss', logits, (label, score)),
        ('VarifocalLoss', logits, quality),
        ('DistributionFocalLoss', corners, distances),
    ):
        calls: Calls = {
            'mmdet': partial(step, getattr(stock, name)(), pred, target),
            'ours': partial(step, getattr(ours, name)(), pred, target),
        }
        if pred is logits:
            calls['sigmoid alone'] = lambda: torch.autograd.grad(logits.sigmoid().sum(), logits)
        compare(f'{name}, {" x ".join(map(str, pred.shape))}, forward + backward', calls, args)


def transport_problem(batch: int, preds: int, gts: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Costs with a background column, largest about 1, and their marginals, each summing to 1."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, preds, gts + 1, generator=generator)
    cost[:, :, -1] = 0.5
    a = torch.full((batch, preds), 1 / preds)
    b = torch.full((batch, gts + 1), 1 / preds)
    b[:, -1] = (preds - gts) / preds
    return cost.to(device), a.to(device), b.to(device)


def uotod_unbalanced(cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_a: float, reg_b: float, steps: int) -> Tensor:
    """uotod's formula: a fixed number of iterations on the kernel."""
    kernel = (-cost / reg).exp()
    u, v = torch.ones_like(a), torch.ones_like(b)
    for _ in range(steps):
        u = (a / (kernel @ v[:, :, None])[:, :, 0]) ** (reg_a / (reg_a + reg))
        v = (b / (kernel.transpose(1, 2) @ u[:, :, None])[:, :, 0]) ** (reg_b / (reg_b + reg))
    return u[:, :, None] * kernel * v[:, None]


def first_below(bound: float, error: Callable[[Tensor], float], solve: Callable, settings: list) -> object:
    """The first of the settings, from loose to strict, whose solution keeps the bound."""
    for setting in settings:
        if error(solve(setting)) <= bound:
            return setting
    raise SystemExit(f'{solve} does not reach an error of {bound}')


def solvers(args: argparse.Namespace) -> None:
    """Sinkhorn to an error of 1e-3, against POT's batch solver and uotod's formula."""
    from ot.batch import solve_batch

    tolerances = [scale * 10.0**power for power in range(-1, -8, -1) for scale in (5, 2, 1)]
    reg_a, reg_b = 1.0, 0.1
    for shape in ((48, 300, 30), (16, 900, 50), (4, 8732, 20)):
        for reg in (0.05, 0.01):
            cost, a, b = transport_problem(*shape, args.device)

            def pot(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                options = dict(method='log_sinkhorn', grad='detach', max_iter=20000)
                return solve_batch(cost, reg, a=a, b=b, tol=tol, **options).plan

            def own(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return sinkhorn(cost, a, b, reg, num_iter=5000, tol=tol).plan

            def marginal_error(plan: Tensor, a=a, b=b) -> float:
                return ((plan.sum(2) - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)).max().item()

            calls: Calls = {}
            for name, solve in (("POT's batch solver", pot), ('ours', own)):
                calls[name] = partial(solve, first_below(1e-3, marginal_error, solve, tolerances))
            compare(f'Balanced, {shape}, reg {reg}, L1 error of the marginals <= 1e-3', calls, args)

            best = sinkhorn(cost.double(), a, b, reg, reg_a, reg_b, num_iter=20000, tol=1e-10).plan

            def uotod(steps: int, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return uotod_unbalanced(cost, a, b, reg, reg_a, reg_b, steps)

            def own_unbalanced(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return sinkhorn(cost, a, b, reg, reg_a, reg_b, num_iter=5000, tol=tol).plan

            def distance(plan: Tensor, best=best) -> float:
                return (plan - best).abs().sum((1, 2)).max().item()

            steps = first_below(1e-3, distance, uotod, [2, 5, *range(10, 2000, 10)])
            tol = first_below(1e-3, distance, own_unbalanced, tolerances)
            calls = {
                f"uotod's formula, {steps} iterations": partial(uotod, steps),
                'ours': partial(own_unbalanced, tol),
            }
            compare(f'Unbalanced, {shape}, reg {reg}, L1 distance from the optimum <= 1e-3', calls, args)


DETR_COSTS = [
    dict(type='ClassificationCost', weight=1.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


def random_images(
    count: int, preds: int, gts: int, classes: int, device: str
) -> tuple[list[InstanceData], list[InstanceData], list[dict]]:
    """Predictions, up to ``gts`` ground truths and meta information of images of 800 x 1200."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1200.0, 800, 1200, 800])
    predictions, truths = [], []
    for number in torch.randint(1, gts + 1, (count,), generator=generator).tolist():
        scores = torch.randn(preds, classes + 1, generator=generator)
        labels = torch.randint(0, classes, (number,), generator=generator)
        boxes, gt_boxes = (random_boxes(n, generator=generator) * size for n in (preds, number))
        predictions.append(InstanceData(scores=scores, bboxes=boxes).to(device))
        truths.append(InstanceData(labels=labels, bboxes=gt_boxes).to(device))
    return predictions, truths, [dict(img_shape=(800, 1200))] * count


def matching(args: argparse.Namespace) -> None:
    """Hungarian matching of 48 images with 300 predictions, costs included, against 48 calls of mmdet's assigner."""
    predictions, truths, metas = random_images(48, 300, 30, 80, args.device)
    stacked = {name: torch.stack([p[name] for p in predictions]) for name in ('scores', 'bboxes')}
    mmdets = TASK_UTILS.build(dict(type='HungarianAssigner', match_costs=DETR_COSTS))
    own = TASK_UTILS.build(dict(type='uotod_mmdet.HungarianAssigner', match_costs=DETR_COSTS))

    def one_by_one() -> list[Tensor]:
        return [mmdets.assign(p, t, img_meta=m).gt_inds for p, t, m in zip(predictions, truths, metas)]

    def batched() -> tuple[Tensor, Tensor]:
        return own.plan(make_batch(stacked, truths, metas))

    cost, plans = batched()
    for gt_inds, plan in zip(one_by_one(), plans):
        matched, gts = plan[:, :-1].max(1)
        assert torch.equal(gt_inds, torch.where(matched > 0, gts + 1, 0))
    costs = [c[:, : len(t)].cpu().double().numpy() for c, t in zip(cost, truths)]
    calls: Calls = {
        'mmdet, 48 calls': one_by_one,
        'ours, one batch': batched,
        'scipy in a loop, costs given': lambda: [linear_sum_assignment(c) for c in costs],
    }
    try:
        from lap import lapjvx_batch

        padded = cost.cpu().double().transpose(1, 2).numpy()
        calls['lapx batch, costs given, padded'] = lambda: lapjvx_batch(padded, extend_cost=True)
    except ImportError:
        print('lapx is not installed: left out')
    compare('Hungarian matching of 48 images, N=300, M<=30, same assignment', calls, args)


def heads(args: argparse.Namespace) -> None:
    """DETRHead's loss, 6 layers, B=8, N=300, M<=30, C=80, forward + backward, against mmdet's."""
    _, truths, metas = random_images(8, 300, 30, 80, args.device)
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 8, 300, 81, generator=generator).to(args.device).requires_grad_()
    boxes = torch.randn(6, 8, 300, 4, generator=generator).sigmoid().to(args.device).requires_grad_()

    def step(head: torch.nn.Module) -> object:
        terms = head.loss_by_feat(scores, boxes, truths, metas)
        return torch.autograd.grad(sum(value for name, value in terms.items() if 'loss' in name), [scores, boxes])

    calls: Calls = {}
    for name, head, assigner in (
        ('mmdet, Hungarian', 'DETRHead', 'HungarianAssigner'),
        ('ours, Hungarian', 'uotod_mmdet.DETRHead', 'uotod_mmdet.HungarianAssigner'),
        ('ours, Sinkhorn', 'uotod_mmdet.DETRHead', 'uotod_mmdet.BalancedSinkhornAssigner'),
    ):
        model = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model
        init_default_scope('mmdet')
        model.train_cfg.assigner.type = assigner
        model.bbox_head.update(type=head, train_cfg=model.train_cfg)
        calls[name] = partial(step, MMDET_MODELS.build(model.bbox_head).to(args.device))
    compare('DETRHead loss, 6 layers, B=8, N=300, M<=30, C=80, forward + backward', calls, args)


def detection_case(batch: int, preds: int, gts: int, classes: int, device: str) -> tuple[torch.nn.Module, dict, dict]:
    """A DetectionLoss, predictions and targets."""
    generator = torch.Generator().manual_seed(0)
    input = dict(
        pred_logits=torch.randn(batch, preds, classes + 1, generator=generator),
        pred_boxes=random_boxes(batch, preds, generator=generator),
    )
    target = dict(
        labels=torch.randint(0, classes, (batch, gts), generator=generator),
        boxes=random_boxes(batch, gts, generator=generator),
    )
    costs = [
        dict(type='ClassificationCost'),
        dict(type='BBoxL1Cost', weight=5.0),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    config = dict(
        type='DetectionLoss',
        loss_cls=dict(type='CrossEntropyLoss'),
        loss_bbox=[dict(type='L1Loss'), dict(type='GIoULoss')],
        assigner=dict(type='UnbalancedSinkhornAssigner', match_costs=costs),
    )
    input = {name: value.to(device).requires_grad_() for name, value in input.items()}
    return MODELS.build(config), input, {name: value.to(device) for name, value in target.items()}


def match_case(module: torch.nn.Module, input: dict, target: dict) -> Tensor:
    """The plan of a :func:`detection_case`."""
    truths = [InstanceData(labels=labels, bboxes=boxes) for labels, boxes in zip(target['labels'], target['boxes'])]
    predictions = dict(scores=input['pred_logits'], bboxes=input['pred_boxes'])
    return match_batch(module.assigner, make_batch(predictions, truths, [dict(img_shape=(1, 1))] * len(truths)))


def dense_detection_loss(input: dict, target: dict, plan: Tensor) -> Tensor:
    """DetectionLoss with softmax cross-entropy, L1 and GIoU, on tensors of predictions x ground truths x classes."""
    logits, boxes, labels, gt_boxes = input['pred_logits'], input['pred_boxes'], target['labels'], target['boxes']
    preds, columns, gts = logits.size(1), logits.size(2), labels.size(1)
    all_labels = torch.cat([labels, torch.full_like(labels[:, :1], columns - 1)], 1)
    rows = logits[:, :, None].expand(-1, -1, gts + 1, -1).reshape(-1, columns)
    cls = F.cross_entropy(rows, all_labels[:, None].expand(-1, preds, -1).reshape(-1), reduction='none')
    pair_boxes = boxes[:, :, None].expand(-1, -1, gts, -1).reshape(-1, 4)
    pair_gts = gt_boxes[:, None].expand(-1, preds, -1, -1).reshape(-1, 4)
    low, high = torch.maximum(pair_boxes, pair_gts), torch.minimum(pair_boxes, pair_gts)
    overlap = (high[:, 2:] - low[:, :2]).clamp(min=0).prod(1)
    hull = (low[:, 2:] - high[:, :2]).prod(1)
    union = (pair_boxes[:, 2:] - pair_boxes[:, :2]).prod(1) + (pair_gts[:, 2:] - pair_gts[:, :2]).prod(1) - overlap
    loc = (pair_boxes - pair_gts).abs().sum(1) + 1 - overlap / union + (hull - union) / hull
    matched = plan[:, :, :-1]
    return (plan * cls.view(plan.shape)).sum() / plan.sum() + (matched * loc.view(matched.shape)).sum() / matched.sum()


def uotod_detection_loss(input: dict, target: dict) -> Optional[Callable[[], Tensor]]:
    """uotod's own DetectionLoss with Sinkhorn matching, if it is installed."""
    # Importing uotod 0.3.post2 from PyPI fails on a sample image that it lacks; the loss needs neither that nor plots.
    for name, needed in (('uotod.sample', ()), ('uotod.plot', ('image_with_boxes', 'match', 'cost'))):
        stand_in = sys.modules.setdefault(name, types.ModuleType(name))
        vars(stand_in).update(dict.fromkeys(needed))
    try:
        from uotod.loss import DetectionLoss, GIoULoss, NegativeProbLoss
        from uotod.match import BalancedSinkhorn
    except ImportError as error:
        print(f'uotod is left out: {error}')
        return None
    none = dict(reduction='none')
    matching_method = BalancedSinkhorn(
        cls_match_module=NegativeProbLoss(**none), loc_match_module=torch.nn.L1Loss(**none), background=True
    )
    module = DetectionLoss(
        cls_loss_module=torch.nn.CrossEntropyLoss(**none),
        loc_loss_module=GIoULoss(**none),
        matching_method=matching_method,
        bg_class_position='last',
    )
    masked = dict(target, mask=torch.ones_like(target['labels'], dtype=torch.bool))
    return lambda: module(input, masked)


def detection_loss(args: argparse.Namespace) -> None:
    """DetectionLoss, matching included, against the dense formula on a plan that is given to it."""
    size = (8, 900, 50, 80)
    module, input, target = detection_case(*size, args.device)
    plan = match_case(module, input, target)
    sparse, dense = lambda: module(input, target), lambda: dense_detection_loss(input, target, plan)
    torch.testing.assert_close(sparse(), dense(), rtol=1e-3, atol=0)
    calls: Calls = {
        'dense formula, plan given': lambda: torch.autograd.grad(dense(), list(input.values())),
        'DetectionLoss, matching included': lambda: torch.autograd.grad(sparse(), list(input.values())),
    }
    theirs = uotod_detection_loss(input, target)
    if theirs:
        calls['uotod, matching included'] = lambda: torch.autograd.grad(theirs(), list(input.values()))
    compare('DetectionLoss, B={} N={} M={} C={}, forward + backward'.format(*size), calls, args)


def training_step(args: argparse.Namespace) -> None:
    """A whole training step of tiny GFL on 16 images, soft plan against stock GFL with ATSSAssigner."""
    calls: Calls = {}
    with tempfile.TemporaryDirectory() as folder:
        make_color_boxes(Path(folder), 'mini')
        for name, config in (('stock GFL, ATSSAssigner', 'gfl_tiny_atss'), ('our GFL, soft plan', 'gfl_tiny_soft')):
            cfg = Config.fromfile(ROOT / f'configs/color_boxes/{config}.py')
            init_default_scope('mmdet')
            cfg.train_dataloader.dataset.update(data_root=folder, size='mini')
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            items = [dataset[index] for index in range(16)]
            torch.manual_seed(0)
            detector = MMDET_MODELS.build(cfg.model).to(args.device).train()
            optim_wrapper = build_optim_wrapper(detector, cfg.optim_wrapper)

            def step(detector=detector, optim_wrapper=optim_wrapper, items=items) -> object:
                inputs, samples = [item['inputs'] for item in items], [item['data_samples'] for item in items]
                return detector.train_step(dict(inputs=inputs, data_samples=samples), optim_wrapper)

            calls[name] = step
        compare('Whole training step of tiny GFL, 16 images of 250 x 200', calls, args)


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


PARTS = {
    'losses': losses,
    'solvers': solvers,
    'matching': matching,
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
    parser.add_argument('--repeats', type=int, default=15, help='rounds, each measuring every side once')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
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
        head = [
            '# Benchmarks',
            '',
            f'Made by `python tools/benchmark.py {args.part} --out {args.out.name}` on {args.device}: {machine()}.',
            f'Medians of {args.repeats} rounds in which all sides take turns: two calls untimed, one timed. Freed',
            'memory stays in the process. Ratios are to the first row.',
            '',
        ]
        args.out.write_text('\n'.join([*head, *args.lines]))


if __name__ == '__main__':
    main()
