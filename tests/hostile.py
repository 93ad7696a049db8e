"""Random hostile input to losses, assigners, solvers, costs, DetectionLoss and heads, and what must come of it.

Each case is made from (seed, number) alone. Nothing may crash and nothing may be silently wrong: a case ends well with
finite values and gradients, equal to those of a formula in float64 (or of the same call on plain float64 copies
without the compiled part), or with an error of ours that names the argument. A case to which nothing bad was done, only
odd layouts and data types, must succeed.

    python tests/hostile.py --cases 10000 --seed 1
    python tests/hostile.py --seed 1 --only 4711      # one case: what is handed over, and the whole traceback
"""

import argparse
import contextlib
import faulthandler
import json
import linecache
import logging
import math
import random
import re
import subprocess
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402
from torch import Tensor  # noqa: E402

import uotod_mmdet  # noqa: E402
from uotod_mmdet import costs, losses, ot  # noqa: E402
from uotod_mmdet.ops import native  # noqa: E402
from uotod_mmdet.plan import expand  # noqa: E402
from uotod_mmdet.registry import MODELS, TASK_UTILS  # noqa: E402

OURS = str(Path(uotod_mmdet.__file__).parent)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
BAD_NUMBERS = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 1e-45)
SECONDS_PER_CASE = 60


class Case(NamedTuple):
    """A call, what it is given, and what is known of the answer."""

    run: Callable[..., Any]  # run(**given) gives tensors by name
    given: dict[str, Any]  # arguments by name, not to be modified
    names: str  # words of which an error must contain one
    formula: Optional[Callable[..., Any]] = None  # the answer to plain float64 copies; None: ``run`` itself
    check: Optional[Callable[[dict, dict], Optional[str]]] = None  # what is wrong with (plain copies, answer)
    rtol: float = 1e-3
    atol: float = 1e-4


class Dice:
    """Random choices of one case. ``bad`` and what it guards make the case illegal."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(f'{seed}/{number}')
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        self.hostile = self.chance(0.5)
        self.legal = True

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def bad(self, share: float = 0.15) -> bool:
        """Whether to do something bad here; never in a legal case."""
        done = self.hostile and self.chance(share)
        self.legal &= not done
        return done

    def choice(self, *options: Any) -> Any:
        return self.random.choice(options)

    def size(self, *options: int) -> int:
        return self.choice(*(options or (0, 1, 2, 3, 5, 8, 17)))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def whole(self, *shape: int, low: int = 0, high: int = 1) -> Tensor:
        """Whole numbers in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def boxes(self, *shape: int, extent: float = 1.0) -> Tensor:
        corner = self.uniform(*shape, 2, high=0.6 * extent)
        return torch.cat([corner, corner + self.uniform(*shape, 2, low=0.05 * extent, high=0.4 * extent)], -1)

    def bad_boxes(self, boxes: Tensor) -> Tensor:
        """Reversed, empty, huge or tiny boxes among them, or entries that are no numbers."""
        if not boxes.numel() or not self.bad():
            return boxes
        boxes, rows = boxes.clone(), self.uniform(*boxes.shape[:-1]) < self.choice(0.1, 0.5, 1.0)
        way = self.choice('reversed', 'empty', 'huge', 'tiny', 'poison')
        if way == 'poison':
            return self.poison(boxes, always=True)
        changed = {
            'reversed': boxes[..., [2, 3, 0, 1]],
            'empty': boxes[..., [0, 1, 0, 1]],
            'huge': boxes * self.choice(1e6, 1e18, 1e30),
            'tiny': boxes * self.choice(1e-6, 1e-18, 1e-30),
        }[way]
        return torch.where(rows[..., None], changed, boxes)

    def poison(self, values: Tensor, always: bool = False) -> Tensor:
        """NaN, infinite, huge or tiny entries."""
        if not values.numel() or not (always or self.bad()):
            return values
        where = self.uniform(*values.shape) < self.choice(0.02, 0.2, 1.0)
        return torch.where(where, self.choice(*BAD_NUMBERS), values)

    def floats(self, values: Tensor, *, grad: Optional[float] = None, dtypes: Sequence = FLOATS) -> Tensor:
        """The values in a random floating data type and layout; ``grad``: the chance that gradients are asked for."""
        dtype = self.choice(*dtypes)
        if self.bad(0.06):
            dtype = self.choice(*INTEGERS, torch.bool)
        values = self.layout(values.nan_to_num().to(dtype) if not dtype.is_floating_point else values.to(dtype))
        values = self.shape(values)
        if grad is not None and values.is_floating_point() and self.chance(grad):
            values = values.detach().requires_grad_()
        return values

    def integers(self, values: Tensor) -> Tensor:
        """The whole numbers in a random integer data type and layout."""
        dtype = self.choice(*INTEGERS)
        if self.bad(0.06):
            dtype = self.choice(torch.float32, torch.float64, torch.float16, torch.bool)
        return self.shape(self.layout(values.to(dtype)))

    def mask(self, *shape: int) -> Optional[Tensor]:
        """None, or a mask; a bad one has other dimensions or another data type."""
        if self.chance(0.3):
            return None
        mask = self.layout(self.uniform(*shape) < self.choice(0.7, 1.0, 0.0, 0.5))
        if self.bad(0.1):
            mask = mask.to(self.choice(torch.float32, torch.int64, torch.uint8, torch.float64))
        if mask.dim() and len(mask) > 1 and self.bad(0.1):
            mask = mask[:1]
        return self.shape(mask)

    def layout(self, values: Tensor) -> Tensor:
        """The same values in another layout of memory; around them lie NaN or other numbers."""
        way = self.choice('plain', 'plain', 'strided', 'transposed', 'offset', 'negated', 'columns')
        shape, filler = values.shape, math.nan if values.is_floating_point() else 1
        if not values.dim():
            return values
        if way == 'strided':
            base = values.new_full((*shape[:-1], 2 * shape[-1] + 1), filler)
            return base[..., 1::2].copy_(values)
        if way == 'transposed':
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        if way == 'offset':
            base = values.new_full((values.numel() + 3,), filler)
            return base[3:].view(shape).copy_(values)
        if way == 'columns':
            base = values.new_full((*shape[:-1], shape[-1] + 2), filler)
            return base[..., 1:-1].copy_(values)
        if way == 'negated' and values.is_floating_point():
            return torch._neg_view(-values)
        return values

    def shape(self, values: Tensor) -> Tensor:
        """A wrong shape, if bad."""
        if not self.bad(0.04):
            return values
        ways = [lambda x: x[None], lambda x: x.flatten(), lambda x: x[..., None]]
        if values.dim():
            ways += [lambda x: torch.cat([x, x[:1]]), lambda x: x[..., :0], lambda x: x[:0], lambda x: x.sum()]
        return self.choice(*ways)(values)

    def number(self, value: Any, share: float = 0.1) -> Any:
        """The number, or if bad another type of it, or no good number."""
        if value is None or isinstance(value, (str, bool)) or not self.bad(share):
            return value
        return self.choice(
            *(str(value), float(value), np.float32(value), np.float64(value), torch.tensor(value), np.array(value)),
            *(np.array([value]), math.nan, math.inf, -value, 0, True, [value], 1e30, 1e-30),
        )

    def thing(self, value: Any) -> Any:
        """The value, or if bad something else altogether."""
        if not self.bad(0.02):
            return value
        as_list = value.tolist() if isinstance(value, Tensor) else value
        return self.choice(None, 'text', 1.0, as_list, torch.zeros(()), np.zeros(3))


def exact(value: Any) -> Any:
    """A plain copy: floating tensors as contiguous float64, integers as int64."""
    if isinstance(value, Tensor):
        plain = value.detach().resolve_neg().contiguous().clone()
        if value.is_floating_point():
            return plain.double().requires_grad_(value.requires_grad)
        return plain if value.dtype == torch.bool else plain.long()
    if isinstance(value, BaseBoxes):
        return exact(value.tensor)
    if isinstance(value, InstanceData):
        return InstanceData(**{name: exact(field) for name, field in value.items()})
    if isinstance(value, Mapping):
        return {name: exact(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(exact(entry) for entry in value)
    return value


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors, by the way to them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, BaseBoxes):
        yield name, value.tensor
    elif isinstance(value, (Mapping, InstanceData)):
        for key, field in value.items():
            yield from tensors_in(field, f'{name}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from tensors_in(entry, f'{name}[{index}]')


# Losses


def reduced(loss: Tensor, weight: Any, reduction: str, avg_factor: Any, loss_weight: float) -> Tensor:
    """mmdet's weighting and reduction; the mean of nothing is 0."""
    if weight is not None:
        loss = loss * weight
    if reduction == 'mean':
        eps = torch.finfo(torch.float32).eps
        loss = loss.sum() / (max(loss.numel(), 1) if avg_factor is None else avg_factor + eps)
    elif reduction == 'sum':
        loss = loss.sum()
    return loss * loss_weight


def loss_call(name: str, function: Optional[Callable], options: dict, as_module: bool) -> Callable:
    def run(reduction: str, loss_weight: float, **given: Any) -> dict:
        if as_module:
            module = MODELS.get(f'uotod_mmdet.{name}')(reduction=reduction, loss_weight=loss_weight, **options)
            return dict(loss=module(given.pop('pred'), given.pop('target'), **given))
        loss = function(given.pop('pred'), given.pop('target'), **given, **options, reduction=reduction)
        return dict(loss=loss * loss_weight)

    return run


def reduction_arguments(dice: Dice, *weight_shapes: tuple) -> dict:
    reduction = dice.choice('mean', 'none', 'sum')
    avg_factor = None
    if reduction != 'sum' and dice.chance(0.5):
        avg_factor = dice.choice(3, 7.5, torch.tensor(4.0), torch.tensor(5))
        if dice.bad():
            avg_factor = dice.choice(0, 0.0, math.nan, -1.0, '3', math.inf, np.float32(2), torch.ones(2), [1], True)
    elif dice.bad(0.03):
        avg_factor = 2.0
    if dice.bad(0.03):
        reduction = dice.choice('avg', None, 3)
    weight = None
    if dice.chance(0.6):
        weight = dice.uniform(*dice.choice(*weight_shapes)) * (dice.uniform(1) < 0.9)
        if dice.bad():
            weight = dice.choice(weight - 0.5, -weight, weight * 0)
        weight = dice.thing(dice.floats(dice.poison(weight), grad=0.1 if dice.bad(0.1) else None))
    elif dice.chance(0.1):
        weight = dice.number(0.5, 0.5)
    return dict(reduction=reduction, avg_factor=avg_factor, weight=weight, loss_weight=dice.choice(1.0, 2.0, 0.25))


LOSS_WORDS = 'pred|target|label|score|weight|avg_factor|reduction|beta|alpha|gamma'


def quality_inputs(dice: Dice) -> tuple[Any, Any, int, int, bool]:
    """Predictions, targets of either form, rows, classes, and whether predictions are probabilities."""
    rows, classes = dice.size(), dice.size(1, 2, 5, 80)
    classes = 0 if dice.bad(0.02) else classes
    activated = dice.chance(0.2)
    values = dice.uniform(rows, classes, low=0.01, high=0.99) if activated else dice.normal(rows, classes, scale=3)
    pred = dice.thing(dice.floats(dice.poison(values), grad=0.8))
    if dice.chance(0.6):
        label = dice.whole(rows, high=classes)
        if dice.bad(0.1):
            label = label + dice.choice(1, -1, 1000, 0.5)
        label = dice.floats(dice.poison(label.double())) if dice.chance(0.1) else dice.integers(label)
        score = dice.uniform(rows)
        if dice.bad(0.1):
            score = score + dice.choice(0.5, -0.5)
        target = (label, dice.floats(dice.poison(score)))
        target = list(target) if dice.chance(0.2) else target
        target = target[:1] if dice.bad(0.02) else target
    else:
        soft = dice.uniform(rows, classes) * (dice.uniform(rows, classes) < 0.3)
        soft = soft + 0.5 if dice.bad(0.1) else soft
        target = dice.thing(dice.floats(dice.poison(soft), grad=0.1 if dice.bad(0.1) else None))
    return pred, target, rows, classes, activated


def quality_focal(dice: Dice) -> Case:
    pred, target, rows, classes, activated = quality_inputs(dice)
    beta = dice.choice(2.0, 2, 1.0, 3.0, 1.5)
    beta = dice.choice(0.5, 0, -1.0, math.nan, '2', np.float32(2), 1e30) if dice.bad(0.05) else beta

    def formula(pred: Tensor, target: Any, weight: Any, reduction: str, avg_factor: Any, loss_weight: float) -> dict:
        if not isinstance(target, Tensor):
            label, score = target
            hot = F.one_hot(label.long(), classes + 1)[:, :classes]
            target = hot * torch.where(label < classes, score, 0)[:, None]
        else:
            target = torch.where(target == 0, 0, target)  # as in mmdet, such a target has no gradient
        if activated:
            entropy, prob = F.binary_cross_entropy(pred, target, reduction='none'), pred
        else:
            entropy, prob = F.softplus(pred) - pred * target, pred.sigmoid()
        loss = (entropy * (target - prob).abs().pow(float(beta))).sum(1)
        return dict(loss=reduced(loss, weight, reduction, avg_factor, loss_weight))

    run = loss_call(
        'QualityFocalLoss', losses.quality_focal_loss, dict(beta=beta, activated=activated), dice.chance(0.5)
    )
    return Case(run, dict(pred=pred, target=target, **reduction_arguments(dice, (rows,))), LOSS_WORDS, formula)


def pair_quality(dice: Dice) -> Case:
    pred, target, rows, classes, activated = quality_inputs(dice)
    name = dice.choice('MatchabilityAwareLoss', 'IoUAwareBCELoss', 'PositionSupervisedLoss')
    gamma = dice.number(dice.choice(2.0, 1.5, 1.0, 3.0))
    share, power = dice.choice(0.25, 0.6), dice.choice(2.0, 1.0)
    options = dict(gamma=gamma, activated=activated)
    if name == 'IoUAwareBCELoss':
        options.update(alpha=share, tau=dice.number(1.5))
    elif name == 'PositionSupervisedLoss':
        options.update(alpha=share, beta=power)

    def formula(pred: Tensor, target: Any, weight: Any, reduction: str, avg_factor: Any, loss_weight: float) -> dict:
        if isinstance(target, Tensor):
            is_pair = target > 0
        else:
            label, score = target
            is_pair = F.one_hot(label.long(), classes + 1)[:, :classes] > 0
            target = is_pair * torch.where(label < classes, score, 0)[:, None]
        target = torch.where(is_pair, target, 0)
        logits = pred.logit(eps=torch.finfo(torch.float32).eps) if activated else pred  # as documented
        prob, factors = logits.sigmoid(), (1.0, 1.0)
        if name == 'MatchabilityAwareLoss':
            target = target.pow(float(gamma))
        elif name == 'IoUAwareBCELoss':
            target = (prob.pow(share) * target.pow(1 - share)).detach().clamp(min=0.01)
        else:
            target = target.pow(power)
            factors = share * (target - prob).abs().pow(float(gamma)), 1 - share
        positive = factors[0] * (F.softplus(logits) - logits * target)
        negative = factors[1] * prob.pow(float(gamma)) * F.softplus(logits)
        loss = torch.where(is_pair, positive, negative).sum(1)
        return dict(loss=reduced(loss, weight, reduction, avg_factor, loss_weight))

    run = loss_call(name, None, options, as_module=True)
    words = f'{LOSS_WORDS}|tau'
    return Case(run, dict(pred=pred, target=target, **reduction_arguments(dice, (rows,))), words, formula)


def distribution_focal(dice: Dice) -> Case:
    rows, bins = dice.size(), dice.size(1, 2, 3, 17)
    pred = dice.thing(dice.floats(dice.poison(dice.normal(rows, bins, scale=3)), grad=0.8))
    distance = dice.uniform(rows, high=bins - 1)
    distance = dice.choice(distance.round(), distance, torch.full_like(distance, bins - 1.0))
    if dice.bad(0.1):
        distance = distance + dice.choice(1.0, -1.0, 1e3)
    target = dice.thing(dice.floats(dice.poison(distance), grad=0.1 if dice.bad(0.1) else None))

    def formula(pred: Tensor, target: Tensor, weight: Any, reduction: str, avg_factor: Any, loss_weight: float) -> dict:
        log_prob, left = pred.log_softmax(1), target.long().clamp(0, bins - 1)
        share = target - left
        low, high = (log_prob.gather(1, index[:, None])[:, 0] for index in (left, (left + 1).clamp(max=bins - 1)))
        loss = -((1 - share) * low + share * high)
        return dict(loss=reduced(loss, weight, reduction, avg_factor, loss_weight))

    run = loss_call('DistributionFocalLoss', losses.distribution_focal_loss, {}, dice.chance(0.5))
    return Case(run, dict(pred=pred, target=target, **reduction_arguments(dice, (rows,))), LOSS_WORDS, formula)


def varifocal(dice: Dice) -> Case:
    shape = dice.choice((dice.size(), dice.size(1, 3, 80)), (dice.size(), 4), (dice.size(2, 3), 3, 4))
    pred = dice.thing(dice.floats(dice.poison(dice.normal(*shape, scale=3)), grad=0.8))
    soft = dice.uniform(*shape) * (dice.uniform(*shape) < 0.2)
    soft = soft + dice.choice(0.5, -0.5) if dice.bad(0.1) else soft
    target = dice.thing(dice.floats(dice.poison(soft), grad=0.1 if dice.bad(0.1) else None))
    alpha, gamma = dice.number(dice.choice(0.75, 0.25)), dice.number(dice.choice(2.0, 1.0, 1.5))
    iou_weighted = dice.chance(0.5)

    def formula(pred: Tensor, target: Tensor, weight: Any, reduction: str, avg_factor: Any, loss_weight: float) -> dict:
        # Of a target that is learnt, too, as mmdet's.
        distance = (pred.sigmoid() - target).abs() if target.requires_grad else pred.sigmoid()
        focal = torch.where(target > 0, target if iou_weighted else 1.0, float(alpha) * distance.pow(float(gamma)))
        loss = (F.softplus(pred) - pred * target) * focal
        return dict(loss=reduced(loss, weight, reduction, avg_factor, loss_weight))

    options = dict(alpha=alpha, gamma=gamma, iou_weighted=iou_weighted)
    run = loss_call('VarifocalLoss', losses.varifocal_loss, options, dice.chance(0.5))
    arguments = reduction_arguments(dice, shape, (*shape[:-1], 1), (1,))
    return Case(run, dict(pred=pred, target=target, **arguments), LOSS_WORDS, formula)


# Matching

STRATEGIES = (
    'HungarianAssigner',
    'BalancedSinkhornAssigner',
    'UnbalancedSinkhornAssigner',
    'ClosestPredictionAssigner',
    'ClosestTargetAssigner',
    'SoftMinAssigner',
    'WeightedSumAssigner',
    'OTAAssigner',
)
ASSIGNER_WORDS = (
    'cost|gt_mask|pred_mask|gt_mass|background|reg|num_iter|tol|topq|weight|strateg|threshold|source|ignore_iof_thr|'
    'center|iou|cls|normalize|min_weight'
)


def assigner_options(dice: Dice, name: str, match_costs: list[dict]) -> dict:
    """Arguments of a strategy, tight enough a tolerance that its plan is the same in all precisions."""
    options = dict(background=dice.chance(0.8), background_cost=dice.number(dice.choice(0.0, 0.3, -0.5)))
    if name != 'OTAAssigner':
        options['match_costs'] = match_costs
    if dice.chance(0.5):
        options['ignore_iof_thr'] = dice.number(dice.choice(0.5, -1, 0.0))
        options['keep_every_gt'] = dice.chance(0.5)
    if 'Sinkhorn' in name or name == 'OTAAssigner':
        options.update(num_iter=dice.number(dice.choice(1, 10, 300, 300)), tol=dice.number(1e-6))
        options['gt_mass'] = dice.number(dice.choice(1.0, 1, 2.5, 100.0, 0.5))
        if dice.chance(0.7):
            options['reg'] = dice.number(dice.choice(0.05, 0.3, 5.0, 0.005))
        elif name != 'OTAAssigner':
            options['reg_dimless'] = dice.number(dice.choice(0.12, 1.0))
        if dice.chance(0.3):
            options['normalize_cost'] = dice.chance(0.5)
        if dice.chance(0.1):
            options['topq'] = dice.number(dice.choice(1, 20))
    if name == 'UnbalancedSinkhornAssigner':
        options['reg_pred'] = dice.number(dice.choice(None, 0, 0.1, 1.0, 1e3))
        # Not both near 0: without penalties a plan is exp(-cost / reg), which half precision need not hold.
        small = (0.1, 0.1) if options['reg_pred'] == 0 else (0.01, 0)
        options['reg_target'] = dice.number(dice.choice(None, small[0], 1.0, small[1], 1e3))
    if name == 'ClosestPredictionAssigner':
        options.update(threshold=dice.number(dice.choice(None, 0.0, 5.0)), uniform_background=dice.chance(0.5))
    if name == 'SoftMinAssigner':
        options.update(source=dice.choice('target', 'prediction'), reg=dice.number(dice.choice(0.1, 1.0, 0.01)))
        options['background_weight'] = dice.number(dice.choice(1.0, 0.0, 0.5, 2))
    if name == 'WeightedSumAssigner':
        options['strategies'] = [
            dict(type=f'uotod_mmdet.{part}') for part in ('ClosestTargetAssigner', 'HungarianAssigner')
        ]
        options['weights'] = dice.choice(None, [1, 2], [0.5, 0.5])
        options['normalize'] = dice.chance(0.7)
    return options


def build_assigner(name: str, options: dict) -> Any:
    return TASK_UTILS.get(name if '.' in name else f'uotod_mmdet.{name}')(**options)


def match(dice: Dice) -> Case:
    name = dice.choice(*STRATEGIES)
    batch, preds, gts = dice.size(0, 1, 2, 3), dice.size(0, 1, 3, 12, 40), dice.size(0, 1, 2, 5, 15)
    cost = dice.normal(batch, preds, gts, scale=dice.choice(1.0, 1.0, 10.0, 0.01))
    cost = dice.thing(dice.floats(dice.poison(cost)))
    if isinstance(cost, Tensor) and cost.is_floating_point() and dice.chance(0.1):
        cost.requires_grad_()
    gt_mass = None
    if dice.chance(0.2):
        gt_mass = dice.uniform(batch, gts, low=0.5, high=3)
        if dice.bad():
            gt_mass = dice.choice(gt_mass - 2, -gt_mass, gt_mass * 0, gt_mass * 1e30)
        gt_mass = dice.floats(dice.poison(gt_mass))
    options = assigner_options(dice, name, [dict(type='IoUCost')])

    def run(**given: Any) -> dict:
        return dict(plan=build_assigner(name, options).match(**given))

    def check(given: dict, answer: dict) -> Optional[str]:
        plan, cost = answer['plan'].double(), given['cost']
        if plan.shape != (*cost.shape[:2], cost.size(2) + 1):
            return f'plan has shape {tuple(plan.shape)} for costs {tuple(cost.shape)}'
        if (plan < 0).any():
            return 'plan holds negative mass'
        gt_mask, pred_mask = given['gt_mask'], given['pred_mask']
        if gt_mask is not None and plan[:, :, :-1].masked_select(~gt_mask.bool()[:, None]).any():
            return 'plan holds mass on padded ground truths'
        if pred_mask is not None and plan.masked_select(~pred_mask.bool()[:, :, None]).any():
            return 'plan holds mass on padded predictions'
        if not options['background'] and plan[..., -1].any():
            return 'plan holds background mass without a background'
        if options['background'] and name in ('HungarianAssigner', 'ClosestTargetAssigner'):
            real = torch.ones(cost.shape[:2], dtype=torch.bool) if pred_mask is None else pred_mask.bool()
            if not torch.equal(plan.sum(2), real.double()):
                return 'rows of the plan do not sum to 1'
        if name == 'HungarianAssigner':
            return check_least_cost(cost, gt_mask, pred_mask, plan[:, :, :-1])
        return None

    given = dict(cost=cost, gt_mask=dice.mask(batch, gts), gt_mass=gt_mass, pred_mask=dice.mask(batch, preds))
    return Case(run, given, ASSIGNER_WORDS, check=check, rtol=1e-2, atol=1e-2)


def check_least_cost(
    cost: Tensor, gt_mask: Optional[Tensor], pred_mask: Optional[Tensor], plan: Tensor
) -> Optional[str]:
    """Whether a plan of zeros and ones is as cheap as scipy's."""
    for index, problem in enumerate(cost.detach()):
        rows = torch.arange(len(problem)) if pred_mask is None else pred_mask[index].nonzero()[:, 0]
        columns = torch.arange(problem.size(1)) if gt_mask is None else gt_mask[index].nonzero()[:, 0]
        real = problem[rows][:, columns].numpy()
        expected = real[linear_sum_assignment(real)].sum()
        chosen = plan[index][rows][:, columns].numpy()
        if chosen.sum() != min(real.shape):
            return f'{chosen.sum()} pairs for {real.shape}'
        if abs((real * chosen).sum() - expected) > 1e-5 * max(1, np.abs(real).max(initial=0)):
            return f'costs {(real * chosen).sum()} in image {index}, {expected} is possible'
    return None


BOX_COSTS = (
    [dict(type='BBoxL1Cost', weight=5.0), dict(type='IoUCost', iou_mode='giou', weight=2.0)],
    [dict(type='BBoxL1Cost', box_format='xywh', weight=1.0)],
    [dict(type='IoUCost', iou_mode='iou', weight=1.0)],
    [dict(type='uotod_mmdet.LogIoUCost', weight=1.0)],
)
SCORE_COSTS = ([dict(type='FocalLossCost', weight=2.0)], [dict(type='ClassificationCost', weight=1.0)], [])
PRIOR_COSTS = (
    [dict(type='uotod_mmdet.PriorCenterCost', weight=0.5)],
    [dict(type='uotod_mmdet.InsideGTCost', weight=20.0)],
    [dict(type='uotod_mmdet.PriorIoUCost', weight=1.0)],
    [],
)


def ground_truths(dice: Dice, count: int, classes: int, extent: float) -> InstanceData:
    boxes, labels = dice.bad_boxes(dice.boxes(count, extent=extent)), dice.whole(count, high=classes - 1)
    if dice.bad(0.05):
        labels = labels + dice.choice(1, classes, -1, -100)
    boxes, labels = dice.floats(boxes), dice.integers(labels)
    if boxes.shape[:1] != labels.shape[:1]:
        boxes, labels = boxes.new_zeros(count, 4), labels.new_zeros(count)
    if boxes.shape == (count, 4) and dice.chance(0.1):
        boxes = HorizontalBoxes(boxes, clone=False)
    return InstanceData(bboxes=boxes, labels=labels)


def image_predictions(dice: Dice, preds: int, classes: int, extent: float, fields: Sequence[str]) -> InstanceData:
    made = dict(
        bboxes=lambda: dice.bad_boxes(dice.boxes(preds, extent=extent)),
        priors=lambda: dice.bad_boxes(dice.boxes(preds, extent=extent)),
        scores=lambda: dice.poison(dice.normal(preds, classes, scale=2)),
    )
    values = {name: dice.floats(made[name](), grad=0.2) for name in fields}
    if any(value.shape[:1] != (preds,) for value in values.values()):
        values = {name: value for name, value in values.items() if value.shape[:1] == (preds,)}
    return InstanceData(**values)


def plain_cost(match_costs: list[dict], pred: InstanceData, gt: InstanceData, meta: dict) -> Tensor:
    """The costs of an image by mmdet's and our own match costs, called as mmdet calls them."""
    terms = [
        TASK_UTILS.build(cost)(pred_instances=pred, gt_instances=gt, img_meta=meta, gt_bboxes=gt.bboxes)
        for cost in match_costs
    ]
    return sum(terms, torch.zeros(len(pred), len(gt), dtype=torch.float64))


def assign(dice: Dice) -> Case:
    name = dice.choice(*STRATEGIES)
    preds, gts, classes = dice.size(0, 1, 5, 30), dice.size(0, 1, 2, 8), dice.size(1, 4, 80)
    fields = dice.choice(['bboxes', 'scores'], ['priors'], ['bboxes', 'priors', 'scores'])
    match_costs = dice.choice(*BOX_COSTS[:1]) if fields != ['priors'] else dice.choice(*BOX_COSTS[2:])
    match_costs = match_costs + (dice.choice(*SCORE_COSTS) if 'scores' in fields else [])
    match_costs = match_costs + (dice.choice(*PRIOR_COSTS) if 'priors' in fields else [])
    options = assigner_options(dice, name, match_costs)
    given = dict(
        pred_instances=image_predictions(dice, preds, classes, 100.0, fields),
        gt_instances=ground_truths(dice, gts, classes, 100.0),
        img_meta=dict(img_shape=(100, 100)),
        gt_instances_ignore=dice.choice(None, ground_truths(dice, dice.size(0, 1, 2), classes, 100.0)),
    )

    def run(**given: Any) -> dict:
        result = build_assigner(name, options).assign(**given)
        answer = dict(gt_inds=result.gt_inds, overlaps=result.max_overlaps, labels=result.labels)
        if answer['overlaps'] is None:  # documented, where either side has no boxes (., 4)
            sides = dict(given['pred_instances'].items()), dict(given['gt_instances'].items())
            boxes = [side.get('bboxes', side.get('priors')) for side in sides]
            both = all(box is not None and box.shape[1:] == (4,) for box in boxes)
            assert not both, 'no overlaps though both sides have boxes'
            answer.pop('overlaps')
        return answer

    def check(given: dict, answer: dict) -> Optional[str]:
        gt, pred = given['gt_instances'], given['pred_instances']
        inds, boxes = answer['gt_inds'], pred.bboxes if 'bboxes' in pred else pred.priors
        if inds.shape != (preds,) or (preds and not -1 <= inds.min() <= inds.max() <= gts):
            return f'gt_inds {inds.tolist()} for {preds} predictions and {gts} ground truths'
        rows = (inds > 0).nonzero()[:, 0]
        if not torch.equal(answer['labels'][rows].long(), gt.labels.flatten()[inds[rows] - 1].long()):
            return 'labels are not those of the ground truths'
        a, b = boxes[rows], gt.bboxes[inds[rows] - 1]
        overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
        union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - overlap
        if not torch.allclose(answer['overlaps'][rows].double(), overlap / union, atol=1e-4) and dice.legal:
            return 'max_overlaps are not the IoUs'
        if name == 'HungarianAssigner' and dice.legal:
            cost = plain_cost(
                match_costs, InstanceData(**{**dict(pred.items()), 'bboxes': boxes}), gt, given['img_meta']
            )
            plan = F.one_hot(inds.clamp(min=0), gts + 1)[:, 1:].double()
            return check_least_cost(cost[None], None, None, plan[None])
        return None

    words = f'{ASSIGNER_WORDS}|labels|bboxes|boxes|priors|scores|Cost|pred_instances|gt_instances|box_source'
    return Case(run, given, words, check=check, formula=lambda **given: {})


def sinkhorn(dice: Dice) -> Case:
    batch, rows, columns = dice.size(0, 1, 3), dice.size(0, 1, 4, 30), dice.size(0, 1, 2, 7)
    a = dice.uniform(batch, rows, low=0.1)
    b = dice.uniform(batch, columns, low=0.1)
    a, b = (side / side.sum(1, keepdim=True).clamp(min=0.1) for side in (a, b))
    if dice.bad(0.1):
        a = dice.choice(-a, a * 0, a * 1e30, a * 3)
    cost = dice.floats(dice.poison(dice.normal(batch, rows, columns)), dtypes=FLOATS[:2], grad=0.2)
    given = dict(cost=cost, a=dice.floats(dice.poison(a), dtypes=FLOATS[:2]))
    given.update(b=dice.floats(dice.poison(b), dtypes=FLOATS[:2]), reg=dice.number(dice.choice(0.05, 0.5, 5.0, 0.01)))
    for name in ('reg_a', 'reg_b'):
        given[name] = dice.number(dice.choice(None, None, 0.1, 1.0, 0, math.inf))
    given.update(num_iter=dice.number(dice.choice(1000, 1, 25)), tol=dice.number(1e-6))
    if dice.chance(0.3):
        given.update(check_every=dice.number(dice.choice(10, 1)), relative=dice.chance(0.5))
        given['newton_after'] = dice.number(dice.choice(None, 40, 5))
        given['absorb_above'] = dice.number(dice.choice(None, 0, 5.0))

    def run(**given: Any) -> dict:
        return dict(plan=ot.sinkhorn(**given).plan)

    def check(given: dict, answer: dict) -> Optional[str]:
        plan = answer['plan'].double()
        if not dice.legal or given['num_iter'] < 1000 or not plan.numel() or not ot.sinkhorn(**given).converged.all():
            return None
        for side, dim in (('a', 2), ('b', 1)):
            if given[f'reg_{side}'] in (None, math.inf) and not torch.allclose(
                plan.sum(dim), given[side], rtol=1e-3, atol=1e-4
            ):
                return f'the plan does not keep the marginal {side}'
        return None

    words = 'cost|a|b|reg|reg_a|reg_b|num_iter|tol|check_every|absorb_above|newton_after|scale|marginal'
    return Case(run, given, words, check=check, rtol=1e-2, atol=1e-3)


def assignment(dice: Dice) -> Case:
    batch, rows, columns = dice.size(0, 1, 3), dice.size(0, 1, 4, 30), dice.size(0, 1, 2, 7)
    cost = dice.floats(dice.poison(dice.normal(batch, rows, columns, scale=3)), grad=0.2)
    given = dict(cost=cost, column_mask=dice.mask(batch, columns), row_mask=dice.mask(batch, rows))

    def run(**given: Any) -> dict:
        return dict(columns=ot.assignment(**given))

    def check(given: dict, answer: dict) -> Optional[str]:
        chosen, cost = answer['columns'], given['cost']
        if chosen.shape != cost.shape[:2] or (chosen.numel() and not -1 <= chosen.min() <= chosen.max() < cost.size(2)):
            return f'columns {tuple(chosen.shape)} for costs {tuple(cost.shape)}'
        plan = F.one_hot(chosen + 1, cost.size(2) + 1)[:, :, 1:].double()
        return check_least_cost(cost.double(), given['column_mask'], given['row_mask'], plan)

    return Case(run, given, 'cost|column_mask|row_mask', check=check, formula=lambda **given: {})


def expansion(dice: Dice) -> Case:
    batch, preds, gts = dice.size(0, 1, 3), dice.size(0, 1, 4, 30), dice.size(0, 1, 2, 7)
    plan = dice.uniform(batch, preds, gts + 1) * (dice.uniform(batch, preds, gts + 1) < 0.5)
    if dice.bad(0.1):
        plan = dice.choice(plan - 0.5, plan * 100, plan.round())
    given = dict(plan=dice.thing(dice.floats(plan, grad=0.2)))  # copied, whatever it holds
    given['min_weight'] = dice.number(dice.choice(0, 1e-5, 0.3))

    def run(**given: Any) -> dict:
        pairs = expand(**given)
        return dict(rows=pairs.rows, gts=pairs.gts, images=pairs.images, weight=pairs.weight, rest=pairs.background)

    def formula(plan: Tensor, min_weight: float) -> dict:
        inner = plan[:, :, :-1]
        images, rows, columns = ((inner > 0) & (inner >= min_weight)).nonzero(as_tuple=True)
        return dict(
            rows=images * inner.size(1) + rows,
            gts=images * inner.size(2) + columns,
            images=images,
            weight=inner[images, rows, columns],
            rest=plan[:, :, -1].flatten(),
        )

    return Case(run, given, 'plan|min_weight', formula=formula)


def match_costs(dice: Dice) -> Case:
    images, preds, classes = dice.size(1, 1, 2, 3), dice.size(1, 5, 30), dice.size(1, 4, 80)
    images = 0 if dice.bad(0.04) else images
    preds = 0 if dice.bad(0.1) else preds
    terms = dice.choice(*BOX_COSTS) + dice.choice(*SCORE_COSTS) + dice.choice(*PRIOR_COSTS)
    stacked = dice.chance(0.5)
    fields = ['bboxes', 'scores', 'priors']
    if dice.bad(0.05):
        fields.remove(dice.choice(*fields))
    if stacked:
        made = dict(
            bboxes=lambda: dice.bad_boxes(dice.boxes(images, preds, extent=100.0)),
            priors=lambda: dice.bad_boxes(dice.boxes(images, preds, extent=100.0)),
            scores=lambda: dice.poison(dice.normal(images, preds, classes, scale=2)),
        )
        predictions = {name: dice.floats(made[name](), grad=0.2) for name in fields}
    else:
        dtypes = [dice.choice(*FLOATS) for _ in fields]
        made = [image_predictions(dice, preds, classes, 100.0, fields) for _ in range(images)]
        predictions = [
            InstanceData(**{n: v.to(d) for (n, v), d in zip(pred.items(), dtypes)}) if dice.chance(0.9) else pred
            for pred in made
        ]
    given = dict(
        predictions=predictions,
        gt_instances=[ground_truths(dice, dice.size(0, 1, 4), classes, 100.0) for _ in range(images)],
        img_metas=[dict(img_shape=(100, 100))] * images,
        pred_mask=dice.mask(images, preds),
    )

    def run(**given: Any) -> dict:
        batch = costs.make_batch(**given)
        found = costs.batch_cost([TASK_UTILS.build(cost) for cost in terms], batch)
        return dict(cost=found, mask=batch.gt_mask)

    def check(given: dict, answer: dict) -> Optional[str]:
        if not dice.legal:
            return None
        for index, gt in enumerate(given['gt_instances']):
            if isinstance(given['predictions'], dict):
                pred = {name: values[index].detach() for name, values in given['predictions'].items()}
            else:
                pred = {name: values.detach() for name, values in given['predictions'][index].items()}
            if not len(gt):
                continue
            expected = plain_cost(terms, InstanceData(**pred), gt, given['img_metas'][index])
            if given['pred_mask'] is not None:
                expected = expected * given['pred_mask'][index][:, None]
            found = answer['cost'][index].double()
            if not torch.allclose(found[:, : len(gt)], expected, rtol=1e-3, atol=2e-3):
                return f'costs of image {index} are not those of the match costs alone'
            if found[:, len(gt) :].any():
                return 'costs on padding are not 0'
        return None

    words = 'predictions|gt_instances|labels|bboxes|boxes|priors|scores|pred_mask|out|box_source|Cost|costs|img_meta'
    return Case(run, given, words, check=check, formula=lambda **given: {})


# DetectionLoss

SIGMOID_LOSSES = (
    dict(type='FocalLoss'),
    dict(type='QualityFocalLoss', use_sigmoid=True),
    dict(type='uotod_mmdet.QualityFocalLoss'),
    dict(type='VarifocalLoss'),
    dict(type='uotod_mmdet.VarifocalLoss'),
    dict(type='uotod_mmdet.MatchabilityAwareLoss'),
    dict(type='uotod_mmdet.IoUAwareBCELoss'),
    dict(type='uotod_mmdet.PositionSupervisedLoss', loss_weight=6.0),
    dict(type='CrossEntropyLoss', use_sigmoid=True),
)
BOX_LOSSES = ('L1Loss', 'GIoULoss', 'SmoothL1Loss', 'IoULoss', 'DIoULoss', 'CIoULoss', 'EIoULoss', 'BoundedIoULoss')


def detection_loss(dice: Dice) -> Case:
    batch, preds, gts, classes = dice.size(1, 2, 3), dice.size(1, 4, 20), dice.size(0, 1, 3), dice.size(1, 4)
    batch, preds = 0 if dice.bad(0.03) else batch, 0 if dice.bad(0.05) else preds
    position = dice.choice('last', 'first', 'none')
    columns = classes + (position != 'none')
    loss_cls = dict(type='CrossEntropyLoss')
    if (position == 'none') ^ dice.bad(0.03):
        loss_cls = dict(dice.choice(*SIGMOID_LOSSES))
    elif dice.chance(0.3):
        loss_cls['class_weight'] = dice.uniform(columns + dice.bad(0.05), low=0.3).tolist()
    boxes = [dict(type=name, loss_weight=2.0) for name in dice.random.sample(BOX_LOSSES, dice.choice(1, 2))]
    focal = 'use_sigmoid' not in loss_cls and loss_cls['type'] != 'CrossEntropyLoss'
    mining = dice.chance(0.2) and (loss_cls['type'] in ('CrossEntropyLoss', 'FocalLoss') or dice.bad(0.3))
    name = dice.choice(*STRATEGIES[:-1], 'mmdet.HungarianAssigner')
    costs_of_classes = [dict(type='FocalLossCost')] if focal else [dict(type='ClassificationCost')]
    terms = BOX_COSTS[0] + dice.choice([], costs_of_classes)
    if name == 'mmdet.HungarianAssigner':
        assigner = dict(type=name, match_costs=terms)
    else:
        assigner = dict(assigner_options(dice, name, terms), type=f'uotod_mmdet.{name}')
    options = dict(
        loss_cls=loss_cls,
        loss_bbox=boxes if len(boxes) > 1 or dice.chance(0.2) else boxes[0],
        assigner=assigner,
        bg_class_position=position,
        use_hard_negative_mining=mining,
        neg_to_pos_ratio=dice.number(3.0) if mining else None,
        # Varifocal Loss jumps where the quality becomes 0, as that of a pair of 1e-60 does in float32.
        min_weight=dice.number(dice.choice(1e-5, 1e-5 if 'Varifocal' in loss_cls['type'] else 0, 0.1)),
        loss_weight=dice.choice(1.0, 0.5),
    )
    low = int(position == 'first')
    labels = dice.whole(batch, gts, low=low, high=low + classes - 1)
    if dice.bad(0.05):
        labels = labels + dice.choice(1, -1, 100)
    target: Any = dict(
        labels=dice.integers(labels),
        boxes=dice.floats(dice.bad_boxes(dice.boxes(batch, gts))),
        mask=dice.mask(batch, gts),
    )
    target = {key: value for key, value in target.items() if value is not None}
    if dice.bad(0.02):
        target.pop(dice.choice('labels', 'boxes'))
    elif dice.chance(0.3) and target['labels'].shape == (batch, gts) and target['boxes'].shape == (batch, gts, 4):
        target = [InstanceData(labels=label, bboxes=box) for label, box in zip(target['labels'], target['boxes'])]
        target = target[:-1] if dice.bad(0.05) else target
    reduction = reduction_arguments(dice, (batch, preds))
    reduction.pop('loss_weight')
    given = dict(
        input=dict(
            pred_logits=dice.thing(dice.floats(dice.poison(dice.normal(batch, preds, columns, scale=2)), grad=0.9)),
            pred_boxes=dice.thing(dice.floats(dice.bad_boxes(dice.boxes(batch, preds)), grad=0.9)),
        ),
        target=dice.thing(target),
        anchors=dice.floats(dice.bad_boxes(dice.boxes(*dice.choice((preds,), (batch, preds)))))
        if dice.chance(0.3)
        else None,
        weight=reduction['weight'],
        avg_factor=reduction['avg_factor'],
        reduction_override=reduction['reduction'],
    )
    if given['weight'] is not None and not isinstance(given['weight'], Tensor):
        dice.legal = False  # documented as a tensor

    def run(**given: Any) -> dict:
        module = MODELS.build(dict(options, type='uotod_mmdet.DetectionLoss'))
        return {key: value for key, value in module.loss_terms(**given).items() if 'loss' in key}

    words = (
        f'{LOSS_WORDS}|{ASSIGNER_WORDS}|pred_logits|pred_boxes|labels|boxes|mask|anchors|bg_class_position|'
        'neg_to_pos_ratio|class_weight|Cost|input'
    )
    return Case(run, given, words, rtol=1e-2, atol=1e-3)


# Heads

HEADS = {
    'GFLHead': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'RetinaHead': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'RTMDetSepBNHead': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOXHead': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'DETRHead': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
}
CLASSES = 4
_built: dict = {}


def head_of(kind: str, assigner: str, ours: bool) -> torch.nn.Module:
    """A head of mmdet's config; ``assigner``: 'stock', 'hungarian' or 'sinkhorn'."""
    if (kind, assigner, ours) not in _built:
        from mmengine.hub import get_config

        model = get_config(HEADS[kind]).model
        init_default_scope('mmdet')
        cfg = model.bbox_head
        cfg.num_classes = CLASSES
        if kind != 'DETRHead':
            cfg.update(in_channels=32, feat_channels=32, stacked_convs=1)
        terms = [dict(type='IoUCost', iou_mode='giou'), dict(type='FocalLossCost', weight=0.5)]
        if kind == 'DETRHead':
            terms = model.train_cfg.assigner.match_costs
        if assigner != 'stock':
            name = dict(hungarian='HungarianAssigner', sinkhorn='BalancedSinkhornAssigner')[assigner]
            model.train_cfg.assigner = dict(type=f'uotod_mmdet.{name}', match_costs=terms)
        if assigner == 'sinkhorn':
            model.train_cfg.assigner.update(tol=1e-6, reg=0.05, num_iter=300)
        cfg.update(train_cfg=model.train_cfg, test_cfg=model.test_cfg, type=('uotod_mmdet.' if ours else '') + kind)
        _built[kind, assigner, ours] = MODELS.build(cfg)
    return _built[kind, assigner, ours]


def head(kind: str) -> Callable[[Dice], Case]:
    def make(dice: Dice) -> Case:
        images, extent = dice.size(1, 2, 3), 64
        images = 0 if dice.bad(0.02) else images
        assigner = dice.choice('stock', 'hungarian', 'sinkhorn')
        model = head_of(kind, assigner, ours=True)
        given: dict[str, Any] = {}
        dtypes = [dice.choice(*FLOATS)]
        if kind == 'DETRHead':
            layers, queries = dice.size(1, 3), dice.size(1, 5, 20)
            queries = 0 if dice.bad(0.05) else queries
            logits = dice.normal(layers, images, queries, model.cls_out_channels, scale=2)
            centers = dice.uniform(layers, images, queries, 4, low=0.2, high=0.6)
            given['scores'] = dice.floats(dice.poison(logits), grad=0.9)
            given['boxes'] = dice.floats(dice.bad_boxes(centers), grad=0.9)
        else:
            channels = 4 * (model.reg_max + 1) if kind == 'GFLHead' else 4
            priors, levels = model.num_base_priors, model.prior_generator.num_levels
            fields = [('scores', model.cls_out_channels, 2.0), ('boxes', channels, 0.5)]
            if kind == 'YOLOXHead':
                fields.append(('objectness', 1, 2.0))
            for field, width, scale in fields:
                dtypes = [dice.choice(*FLOATS)]
                given[field] = [
                    dice.floats(
                        dice.poison(dice.normal(images, priors * width, size, size, scale=scale)),
                        grad=0.9,
                        dtypes=dtypes,
                    )
                    for size in (8, 4, 2, 1, 1)[:levels]
                ]
        case_given = given
        counts = [dice.size(0, 1, 4) for _ in range(images)]
        given['gts'] = [ground_truths(dice, count, CLASSES, extent) for count in counts]
        ignored = [InstanceData(bboxes=dice.boxes(dice.size(0, 1), extent=extent).float()) for _ in counts]
        given['ignored'] = ignored if dice.chance(0.4) and kind != 'DETRHead' else None
        shape = dice.choice((64, 64), (60, 64), (64, 64, 3))
        metas = [dict(img_shape=shape, pad_shape=shape, batch_input_shape=(64, 64))] * images

        def call(head: torch.nn.Module, given: dict, metas: list[dict] = metas) -> dict:
            outputs = [given[field] for field in ('scores', 'boxes', 'objectness') if field in given]
            losses = head.loss_by_feat(*outputs, given['gts'], metas, given['ignored'])
            losses = {name: sum(v) if isinstance(v, list) else v for name, v in losses.items() if 'loss' in name}
            return {name: value.sum() for name, value in losses.items()}

        def run(**given: Any) -> dict:
            return call(model, given)

        def formula(**given: Any) -> dict:
            doubles = any(tensor.dtype == torch.float64 for _, tensor in tensors_in(case_given, ''))
            if assigner == 'stock' and kind != 'DETRHead' and doubles:
                return {}  # overlaps are compared in float64: MaxIoUAssigner's ties fall another way
            if assigner == 'stock':  # mmdet's own head, in the float32 it is made for
                for _, tensor in tensors_in(given, ''):
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.float()
                return call(
                    head_of(kind, assigner, ours=False), given, [dict(meta, img_shape=shape[:2]) for meta in metas]
                )
            return call(model, given)

        words = (
            f'{LOSS_WORDS}|{ASSIGNER_WORDS}|labels|boxes|bboxes|Cost|cls_scores|bbox_preds|scores|anchor|img_shape|'
            'reg_max|objectnesses|all_layers_cls_scores|all_layers_bbox_preds|batch_gt_instances|num_classes|gt_instances'
        )
        return Case(run, given, words, formula=formula, rtol=1e-2, atol=1e-3)

    return make


KINDS: dict[str, tuple[float, Callable[[Dice], Case]]] = {
    'QualityFocalLoss': (3, quality_focal),
    'pair quality losses': (3, pair_quality),
    'DistributionFocalLoss': (2, distribution_focal),
    'VarifocalLoss': (3, varifocal),
    'match': (5, match),
    'assign': (4, assign),
    'sinkhorn': (2, sinkhorn),
    'assignment': (1, assignment),
    'expand': (1, expansion),
    'batch_cost': (3, match_costs),
    'DetectionLoss': (5, detection_loss),
    'GFLHead': (1, head('GFLHead')),
    'RetinaHead': (1, head('RetinaHead')),
    'RTMDetSepBNHead': (1, head('RTMDetSepBNHead')),
    'YOLOXHead': (1, head('YOLOXHead')),
    'DETRHead': (2, head('DETRHead')),
}


# What must come of a case


def make_case(seed: int, number: int) -> tuple[str, Dice, Case]:
    dice = Dice(seed, number)
    kind = dice.random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return kind, dice, KINDS[kind][1](dice)


@contextlib.contextmanager
def without_compiled_part() -> Iterator[None]:
    kept, native.library = native.library, None
    try:
        yield
    finally:
        native.library = kept


def gradients_of(answer: dict, given: dict) -> dict[str, Tensor]:
    """Gradients of the sum of all losses by what asks for them; zero where the loss does not depend on it."""
    leaves = {name: tensor for name, tensor in tensors_in(given, '') if tensor.requires_grad}
    values = [value.sum() for name, value in answer.items() if value.requires_grad and value.is_floating_point()]
    if not leaves or not values or not all('loss' in name for name in answer):
        return {}
    found = torch.autograd.grad(sum(values), list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), found)}


def answer_of(run: Callable, given: dict) -> tuple[dict, dict]:
    answer = {name: torch.as_tensor(value) for name, value in run(**given).items()}
    return {name: value.detach() for name, value in answer.items()}, gradients_of(answer, given)


def result_of(seed: int, number: int) -> dict:
    """Kind of the case, and what is wrong with its outcome, '' if nothing."""
    init_default_scope('mmdet')
    kind, dice, case = make_case(seed, number)
    before = [(name, tensor, _bits(tensor)) for name, tensor in tensors_in(case.given, '')]
    fault, refused = '', False
    try:
        answer, gradients = answer_of(case.run, dict(case.given))
    except Exception as error:
        refused = True
        fault = fault_of_error(error, case.names)
        if not fault and dice.legal and 'which does not hold the largest entry of the plan' not in str(error):
            fault = f'refused though legal: {_short(error)}'
    else:
        fault = fault_of_answer(dice, case, answer, gradients)
    for name, tensor, bits in before:
        if _bits(tensor) != bits:
            fault = fault or f'input {_plain(name)} was modified'
    return dict(number=number, kind=kind, legal=dice.legal, refused=refused, fault=fault)


def _bits(tensor: Tensor) -> bytes:
    plain = tensor.detach().resolve_neg().flatten().clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b''


def _short(error: BaseException) -> str:
    first = str(error).strip().split('\n')[0]
    return f'{type(error).__name__}: {first[:160]}'


def _plain(name: str) -> str:
    return re.sub(r'\d+', '0', name.lstrip('.'))


def fault_of_error(error: Exception, names: str) -> str:
    """What is wrong with an error: '' if a check of ours raised it and it names an argument."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if f.filename.startswith(OURS)), frames[-1])
    last = frames[-1]
    place = f'{Path(where.filename).name}:{where.name}'
    raised_by_us = last.filename.startswith(OURS) and linecache.getline(last.filename, last.lineno).strip().startswith(
        'raise'
    )
    if not isinstance(error, (ValueError, TypeError, KeyError)) or not raised_by_us:
        message = re.sub(r'-?\d+(\.\d+)?', '0', _short(error))
        return f'{message} in {place}'
    if not re.search(rf'\b({names})', str(error)):
        return f'names no argument: {_short(error)} in {place}'
    return ''


def fault_of_answer(dice: Dice, case: Case, answer: dict, gradients: dict) -> str:
    given = exact(case.given)
    with without_compiled_part(), contextlib.suppress(Exception):
        expected, expected_gradients = answer_of(case.formula or case.run, given)
        for name, values in expected_gradients.items():  # what no number of the input's data type can hold
            if name in gradients and (values.abs() > torch.finfo(gradients[name].dtype).max).any():
                gradients = {key: value for key, value in gradients.items() if key != name}
        fault = _not_finite(answer, gradients)
        if fault:
            return fault
        for what, found_all, expected_all in (('', answer, expected), ('gradient of ', gradients, expected_gradients)):
            for name in found_all.keys() & expected_all.keys():
                fault = _difference(found_all[name], expected_all[name], case)
                if fault:
                    return f'wrong {what}{_plain(name)}: {fault}'
    fault = _not_finite(answer, gradients)
    if fault or case.check is None:
        return fault
    try:
        fault = case.check(exact(case.given), answer)
    except Exception:
        if dice.legal:
            raise
        return ''  # the input is too bad for the check, and a value came of it that cannot be judged
    return f'wrong: {fault}' if fault else ''


def _not_finite(answer: dict, gradients: dict) -> str:
    for what, values in (('', answer), ('gradient of ', gradients)):
        for name, value in values.items():
            if value.is_floating_point() and not value.isfinite().all():
                return f'not finite: {what}{_plain(name)}'
    return ''


def _difference(found: Tensor, expected: Tensor, case: Case) -> str:
    """What differs, '' if nothing does that rounding does not explain."""
    if found.shape != expected.shape:
        return 'another shape'
    found, expected, dtype = found.double(), expected.double(), found.dtype
    if not expected.isfinite().all() or not found.numel():
        return ''
    half = dict(rtol=3e-2, atol=1e-3) if dtype in (torch.float16, torch.bfloat16) else {}
    scale = float(expected.abs().max().clamp(min=1))
    rtol, atol = half.get('rtol', case.rtol), max(half.get('atol', 0), case.atol)
    return '' if torch.allclose(found, expected, rtol=rtol, atol=atol * scale) else 'another value'


# Many cases, in processes of their own


def run_here(seed: int, numbers: Sequence[int], path: str) -> None:
    """Write a line when a case begins and one when it has ended, so that a crash can be told whose it was."""
    faulthandler.enable()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    with open(path, 'a', buffering=1) as file:
        for number in numbers:
            file.write(json.dumps(dict(begun=number)) + '\n')
            faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
            try:
                result = result_of(seed, number)
            except Exception as error:  # the generator or the oracle is at fault
                frame = traceback.extract_tb(error.__traceback__)[-1]
                fault = f'ORACLE {_short(error)} at {Path(frame.filename).name}:{frame.lineno}'
                result = dict(number=number, kind='oracle', legal=True, refused=False, fault=fault)
            faulthandler.cancel_dump_traceback_later()
            file.write(json.dumps(result) + '\n')


def run_cases(seed: int, numbers: Sequence[int], workers: int = 2) -> list[dict]:
    """Results of cases, in processes of their own; behind a case that ends its process another one goes on."""
    chunks = [numbers[first::workers] for first in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(run_chunk, [seed] * workers, chunks)
        return sorted((result for part in parts for result in part), key=lambda result: result['number'])


def run_chunk(seed: int, numbers: Sequence[int]) -> list[dict]:
    results, left = [], list(numbers)
    while left:
        with tempfile.NamedTemporaryFile('r', suffix='.jsonl') as file:
            command = [sys.executable, '-W', 'ignore', str(Path(__file__)), '--seed', str(seed), '--to', file.name]
            child = subprocess.run([*command, '--numbers', json.dumps(left)], capture_output=True, text=True, cwd=ROOT)
            lines = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
        done = [line for line in lines if 'fault' in line]
        results += done
        begun = [line['begun'] for line in lines if 'begun' in line]
        if len(done) == len(left):
            break
        if not begun or len(done) == len(begun):
            raise RuntimeError(f'the process ended between cases:\n{child.stderr}')
        stack = re.findall(r'File ".*?/(\w+\.py)", line (\d+) in (\w+)', child.stderr)
        place = f'{stack[0][0]}:{stack[0][2]}' if stack else 'unknown'
        cause = 'more than a minute' if 'Timeout' in child.stderr else f'process ended ({child.returncode})'
        kind, dice, _ = make_case(seed, begun[-1])
        fault = f'CRASH {cause} in {place}'
        results.append(dict(number=begun[-1], kind=kind, legal=dice.legal, refused=False, fault=fault))
        left = left[left.index(begun[-1]) + 1 :]
    return results


def table(seed: int, results: Sequence[dict]) -> str:
    """Counts by kind, then each fault with how often and where it came."""
    lines = [f'{"kind":24}{"cases":>7}{"legal":>7}{"refused":>9}{"faults":>8}']
    for kind in sorted({result['kind'] for result in results}):
        own = [result for result in results if result['kind'] == kind]
        counts = (sum(bool(result[key]) for result in own) for key in ('legal', 'refused', 'fault'))
        lines.append('{:24}{:7}{:7}{:9}{:8}'.format(kind, len(own), *counts))
    faults = defaultdict(list)
    for result in results:
        if result['fault']:
            faults[result['kind'], result['fault']].append(result['number'])
    lines.append(f'\nseed {seed}: {len(results)} cases, {sum(map(len, faults.values()))} faults of {len(faults)} kinds')
    for (kind, fault), numbers in sorted(faults.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f'{len(numbers):5}  {kind}: {fault}  (--only {", ".join(map(str, numbers[:4]))})')
    return '\n'.join(lines)


def show(seed: int, number: int) -> dict:
    """Print one case, and the whole traceback of its error."""
    init_default_scope('mmdet')
    kind, dice, case = make_case(seed, number)
    print(f'{kind}, {"legal" if dice.legal else "hostile"}')
    for name, value in case.given.items():
        if not any(True for _ in tensors_in(value, name)):
            print(f'  {name} = {value!r}')
        for place, tensor in tensors_in(value, name):
            layout = f'{tensor.dtype} {tuple(tensor.shape)} stride {tensor.stride()}'
            layout += ', requires_grad' * tensor.requires_grad + ', negated' * tensor.is_neg()
            print(f'  {place}: {layout}\n    {tensor.detach().flatten()[:12].tolist()}')
    closure = getattr(case.run, '__closure__', None) or ()
    for variable, cell in zip(case.run.__code__.co_freevars, closure):
        print(f'  {variable} = {str(cell.cell_contents)[:600]}')
    try:
        answer, gradients = answer_of(case.run, dict(case.given))
        print('answer', answer, '\ngradients', gradients)
        with without_compiled_part():
            print('expected', *answer_of(case.formula or case.run, exact(case.given)))
    except Exception:
        traceback.print_exc()
    return result_of(seed, number)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=2000)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', type=int, help='run and print the case of this number')
    parser.add_argument('--numbers', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--to', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.to:
        run_here(args.seed, args.numbers, args.to)
        return 0
    if args.only is not None:
        print(show(args.seed, args.only))
        return 0
    results = run_cases(args.seed, range(args.first, args.first + args.cases))
    print(table(args.seed, results))
    return int(any(result['fault'] for result in results))


if __name__ == '__main__':
    sys.exit(main())
