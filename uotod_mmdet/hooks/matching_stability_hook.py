"""Log how much the matching of a few images changes from one look to the next, during training."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmengine.runner import Runner
from torch import Tensor

from uotod_mmdet.registry import HOOKS
from uotod_mmdet.visualization import Record

from .fixed_images_hook import FixedImagesHook

PLANS = 'matching_stability'
"""Under which name a checkpoint holds the plans of the last look."""


@HOOKS.register_module()
class MatchingStabilityHook(FixedImagesHook):
    """Log how much the matching of fixed training images changes, every so many epochs or iterations::

        custom_hooks = [dict(type='uotod_mmdet.MatchingStabilityHook', images=32)]

    Two numbers, means over the images, from the second look on:

    - ``instability``: predictions whose ground truth (or background) is another than at the last look
      (DN-DETR, https://arxiv.org/abs/2203.01305, section 3.1). A prediction's ground truth is its heaviest column.
    - ``plan_change``: mass that has moved, half the sum of abs(P_now - P_before); ``instability`` for plans of zeros
      and ones.

    Both are logged for each decoder layer (``instability/d0``, ... ``instability/last``, and ``instability/enc`` for
    the proposals of a two-stage model's encoder); of a dense head for all priors (``instability/last``) and for those
    of each pyramid level (``instability/level0`` is the finest). They go to the backends of the config's visualizer and
    to the message hub, as ``matching/instability/last``. Checkpoints hold the plans of the last look, so that the
    curves of a resumed run go on.

    Args:
        images: How many, spread evenly over the training set (all, where there are fewer); or for each image its index
            in the training set, or its file name or id as a text.
        interval: Epochs or iterations from one look to the next.
        by_epoch: True counts epochs, False iterations; None: as the training loop counts.
        pipeline: Transforms of the images; see :class:`FixedImagesHook`.

    Raises:
        TypeError, ValueError: See :class:`FixedImagesHook`.
    """

    def __init__(
        self,
        images: Union[int, Sequence[Union[int, str]]] = 16,
        interval: int = 1,
        by_epoch: Optional[bool] = None,
        pipeline: Optional[Sequence[dict]] = None,
    ) -> None:
        self.count = self._whole('images', images) if isinstance(images, int) else None
        super().__init__([0] if isinstance(images, int) else images, interval, by_epoch, pipeline)
        self._before: list[list[Tensor]] = []  # the plan of each layer of each image at the last look
        self._loaded: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Choose the images, and go on from the last look of a run that is resumed."""
        if self.count is not None:
            number = len(runner.train_dataloader.dataset)
            count = min(self.count, number)
            self.images = [index * number // count for index in range(count)]
        super().before_train(runner)
        same = runner._resume and self._loaded.get('images') == self.images
        self._before = [[plan.to_dense() for plan in plans] for plans in self._loaded['plans']] if same else []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the plans of the last look."""
        if self._before:
            plans = [[plan.to_sparse() for plan in plans] for plans in self._before]
            checkpoint[PLANS] = dict(images=self.images, plans=plans)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Find the plans of the last look."""
        self._loaded = checkpoint.get(PLANS) or {}

    def look(self, runner: Runner, of_images: list[list[Record]], step: int) -> None:
        """Log what has changed since the last look."""
        now = [[record.plan.float().cpu() for record in records] for records in of_images]
        before, self._before = self._before, now
        shapes = [[[plan.shape for plan in plans] for plans in look] for look in (before, now)]
        if shapes[0] != shapes[1]:
            return  # the first look, or a model of another shape
        changes: dict[str, list[Tensor]] = defaultdict(list)
        for records, *looks in zip(of_images, before, now):
            for record, old, new in zip(records, *looks):
                change = torch.stack([(place_of(new) != place_of(old)).float(), (new - old).abs().sum(1) / 2])
                changes[record.layer].append(change.sum(1))
                if record.levels is not None:
                    levels = record.levels.cpu()
                    for level in range(int(levels.max()) + 1):
                        changes[f'level{level}'].append(change[:, levels == level].sum(1))
        scalars: dict[str, Any] = {}
        for place, values in changes.items():
            instability, plan_change = torch.stack(values).mean(0).tolist()
            scalars.update({f'instability/{place}': instability, f'plan_change/{place}': plan_change})
        for name, value in scalars.items():
            runner.message_hub.update_scalar(f'matching/{name}', value)
        # mmengine has counted the last iteration when an epoch ends, but not when an iteration does.
        done = dict(epoch=step, iter=runner.iter) if self._counts_epochs else dict(iter=step)
        runner.visualizer.add_scalars({**scalars, **done}, step=done['iter'])
        unit = 'epoch' if self._counts_epochs else 'iteration'
        text = '  '.join(f'{name}: {value:.4g}' for name, value in scalars.items())
        runner.logger.info(f'Matching({unit} {step})  {text}')


def place_of(plan: Tensor) -> Tensor:
    """Heaviest column of each prediction, (N,), that of the background where there is no mass."""
    heaviest, places = plan.max(1)
    return torch.where(heaviest > 0, places, plan.size(1) - 1)
