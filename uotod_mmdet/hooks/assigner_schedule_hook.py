"""Change a parameter of the matching during training."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from uotod_mmdet.assigners import TransportAssigner
from uotod_mmdet.registry import HOOKS

Values = Union[float, Sequence[float]]

MODES = {
    'linear': lambda start, stop, progress: start + (stop - start) * progress,
    'cosine': lambda start, stop, progress: stop + (start - stop) * (1 + math.cos(math.pi * progress)) / 2,
    'exponential': lambda start, stop, progress: start ** (1 - progress) * stop**progress,
}


@HOOKS.register_module()
class AssignerScheduleHook(Hook):
    """Move a number of a model's assigners over training.

    A falling ``reg`` goes from a soft to a hard matching; ``reg_target`` rising from 0, from each prediction to its
    closest ground truth to one-to-one; a falling ``gt_mass``, from several predictions for each ground truth to one;
    the weight of a match cost, from priors to predictions. The value depends on the epoch or iteration alone, so a
    resumed run goes on with the right one. It is logged beside the losses. For several parameters, add several hooks.

    Args:
        param: A number of the assigner, such as 'reg', 'reg_pred', 'reg_target', 'gt_mass' or 'background_cost', or of
            one of its parts, as in configs: 'match_costs.0.weight'. The first three are relative to the image's
            largest absolute cost in a Sinkhorn assigner with ``normalize_cost`` (the default), else in units of the
            cost.
        start: Value in the first epoch (iteration) of the range, and before it. A list for ``gt_mass`` by decoder
            layer.
        stop: Value in the last one, and after it; a list of the same length where ``start`` is one.
        mode: 'linear', 'cosine', or 'exponential' (equal ratios; both values positive).
        begin: First epoch (iteration), counted from 0.
        end: Epoch (iteration) after the last. None: the end of training. A range that reaches beyond that is logged.
        by_epoch: True counts epochs, False iterations; None: as the training loop counts.

    Raises:
        TypeError: If the parameter takes whole numbers only, or is not a number.
        ValueError: If an argument is out of range, no assigner of the model has the parameter, or epochs are to be
            counted in a training loop that counts iterations only.
    """

    def __init__(
        self,
        param: str,
        start: Values,
        stop: Values,
        mode: str = 'linear',
        begin: int = 0,
        end: Optional[int] = None,
        by_epoch: Optional[bool] = None,
    ) -> None:
        if not isinstance(param, str) or not param:
            raise TypeError(f'AssignerScheduleHook: param must be the name of a number of the assigner, got {param!r}')
        if mode not in MODES:
            raise ValueError(f'AssignerScheduleHook: mode must be one of {tuple(MODES)}, got {mode!r}')
        lengths = [len(value) if isinstance(value, Sequence) else None for value in (start, stop)]
        if lengths[0] != lengths[1] or lengths[0] == 0:
            raise ValueError(
                'AssignerScheduleHook: start and stop must be numbers, or lists of the same length, got '
                f'start={start}, stop={stop}'
            )
        for name, value in [('start', value) for value in _all(start)] + [('stop', value) for value in _all(stop)]:
            if not math.isfinite(value):
                raise ValueError(f'AssignerScheduleHook: {name} must be a finite number, got {value}')
            if (mode == 'exponential' or param == 'reg') and not value > 0:
                reason = "mode='exponential'" if mode == 'exponential' else 'reg'
                raise ValueError(f'AssignerScheduleHook: {name} must be positive for {reason}, got {value}')
            if param in ('reg_pred', 'reg_target') and not value >= 0:
                raise ValueError(f'AssignerScheduleHook: {name} must be >= 0 for {param}, got {value}')
        if begin < 0 or (end is not None and end <= begin):
            raise ValueError(f'AssignerScheduleHook: needs 0 <= begin < end, got begin={begin}, end={end}')
        self.param = param
        self.start = start
        self.stop = stop
        self.mode = mode
        self.begin = begin
        self.end = end
        self.by_epoch = by_epoch
        self._range = begin, begin + 1 if end is None else end  # the end is known when training begins

    def before_train(self, runner: Runner) -> None:
        """Find the assigners, and what the training loop counts."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        found = _assigners(model)
        places = [_place(assigner, self.param) for assigner in found if isinstance(assigner, TransportAssigner)]
        self._places = [place for place in places if place is not None]
        if not self._places:
            names = sorted({type(assigner).__name__ for assigner in found}) or 'none'
            raise ValueError(
                f'AssignerScheduleHook: no assigner of the model has {self.param}; it has {names}. reg belongs to the '
                'Sinkhorn strategies and SoftMinAssigner, reg_pred and reg_target to UnbalancedSinkhornAssigner, '
                'background_cost to all of uotod_mmdet; the weight of the first match cost is match_costs.0.weight.'
            )
        for owner, name in self._places:
            _check_moves(owner, name, self.param, (self.start, self.stop))
        counts_epochs = not isinstance(runner.train_loop, IterBasedTrainLoop)
        if self.by_epoch and not counts_epochs:
            raise ValueError(
                f'AssignerScheduleHook: by_epoch=True for {self.param}, but {type(runner.train_loop).__name__} counts '
                'iterations only, so that the value would never move. Write by_epoch=False, and begin and end in '
                f'iterations (training has {runner.max_iters}).'
            )
        self._counts_epochs = counts_epochs if self.by_epoch is None else self.by_epoch
        length = runner.max_epochs if self._counts_epochs else runner.max_iters
        self._range = self.begin, length if self.end is None else self.end
        if max(self.begin + 1, self._range[1]) > length:
            unit = 'epochs' if self._counts_epochs else 'iterations'
            print_log(
                f'AssignerScheduleHook: begin={self.begin}, end={self.end} reach beyond the {length} {unit} of the '
                f'training: {self.param} ends at {_text(self.value(length - 1))} instead of '
                f'{_text(self.stop)}.',
                logger='current',
                level=logging.WARNING,
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the value and log it."""
        value = self.value(runner.epoch if self._counts_epochs else runner.iter)
        for owner, name in self._places:
            setattr(owner, name, value)
        for index, part in enumerate(_all(value)):
            place = f'.{index}' if isinstance(value, list) else ''
            runner.message_hub.update_scalar(f'train/{self.param}{place}', part)

    def value(self, step: int) -> Union[float, list[float]]:
        """The parameter in epoch (iteration) ``step``."""
        begin, end = self._range
        progress = min(max((step - begin) / max(end - 1 - begin, 1), 0.0), 1.0)
        values = [MODES[self.mode](start, stop, progress) for start, stop in zip(_all(self.start), _all(self.stop))]
        return values if isinstance(self.start, Sequence) else values[0]


def _all(value: Values) -> Sequence[float]:
    """The numbers of a value."""
    return value if isinstance(value, Sequence) else [value]


def _text(value: Values) -> str:
    return ', '.join(f'{number:.6g}' for number in _all(value))


def _assigners(model: nn.Module) -> list:
    """All assigners that modules of the model hold, those inside a WeightedSumAssigner included."""
    found = [vars(module)['assigner'] for module in model.modules() if 'assigner' in vars(module)]
    for assigner in found:
        found.extend(getattr(assigner, 'strategies', []))
    return found


def _place(assigner: TransportAssigner, param: str) -> Optional[tuple[Any, str]]:
    """What holds the parameter, and its name there; None: the assigner has no such parameter."""
    *parts, name = param.split('.')
    owner: Any = assigner
    for part in parts:
        if isinstance(owner, (list, tuple)):
            owner = owner[int(part)] if part.isdigit() and int(part) < len(owner) else None
        else:
            owner = getattr(owner, part, None)
    return (owner, name) if name in getattr(owner, '__dict__', {}) else None


def _check_moves(owner: Any, name: str, param: str, values: tuple[Values, Values]) -> None:
    """Check that the parameter is a number, or a list of numbers, and may have these values."""
    checks, value = getattr(owner, 'checks', {}), getattr(owner, name)
    if isinstance(value, list) and not isinstance(values[0], Sequence):
        raise TypeError(
            f'AssignerScheduleHook: {param} of {type(owner).__name__} is {value}: start and stop must be lists, too'
        )
    if isinstance(value, list):
        value = value[0]
    if isinstance(value, (bool, str)) or not (isinstance(value, (int, float)) or (value is None and name in checks)):
        raise TypeError(f'AssignerScheduleHook: {param} of {type(owner).__name__} is {value!r}, which is not a number.')
    for new in values:
        if name in checks:
            checks[name](name, new)
