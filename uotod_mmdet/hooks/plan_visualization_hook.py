"""Draw what answers for the ground truths of a few images, during training."""

import os
from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from uotod_mmdet.registry import HOOKS
from uotod_mmdet.visualization import file_of, fixed_items, matchings_of, plain_pipeline, why_not
from uotod_mmdet.visualization.figures import matching_figure, rendered


@HOOKS.register_module()
class PlanVisualizationHook(Hook):
    """Draw the matching of a few training images every so many epochs or iterations, and once before training::

        custom_hooks = [dict(type='uotod_mmdet.PlanVisualizationHook', images=[0, '000139.jpg'], interval=1)]

    A picture shows the image with its ground truths and the predictions that answer for them, and the heaviest rows of
    cost and plan. The images look the same each time: without augmentation, resized as in validation. Pictures go to
    the backends of the config's visualizer, under the name ``plan_<image>``, ``plan_<image>_<layer>`` for layers other
    than the last, and the number of epochs or iterations done as their step: LocalVisBackend writes
    ``vis_data/vis_image/plan_000139_3.png``, TensorboardVisBackend and WandbVisBackend show a slider.
    ``tools/show_run.py WORK_DIR --plans`` makes an animation of the files.

    Between two pictures the hook does nothing. The weights that come out of training are those without the hook, bit
    for bit: see :func:`~uotod_mmdet.visualization.matchings_of`. In distributed training all processes compute the
    matchings, and the first one draws.

    A model whose matching cannot be seen, such as Faster R-CNN or Mask2Former, is warned of once and trains on.

    Args:
        images: For each image its index in the training set, or its file name or id as a text.
        interval: Epochs or iterations from one picture to the next.
        by_epoch: True counts epochs, False iterations; None: as the training loop counts.
        layers: Decoder layers to draw: 'last', 'd0', 'd1', ..., and 'enc' for the proposals of a two-stage model's
            encoder. A dense head's only one is 'last'.
        max_rows: Predictions in the matrices at most.
        pipeline: Transforms of the images, with PackDetInputs last; None: see
            :func:`~uotod_mmdet.visualization.plain_pipeline`.

    Raises:
        TypeError: If ``images`` or ``layers`` is not a list.
        ValueError: If an argument is out of range, the training set does not have one of the images, the model not one
            of the layers, or epochs are to be counted in a training loop that counts iterations only.
    """

    priority = 'LOW'

    def __init__(
        self,
        images: Sequence[Union[int, str]] = (0,),
        interval: int = 1,
        by_epoch: Optional[bool] = None,
        layers: Sequence[str] = ('last',),
        max_rows: int = 20,
        pipeline: Optional[Sequence[dict]] = None,
    ) -> None:
        for name, value in (('images', images), ('layers', layers)):
            if isinstance(value, (str, int)):
                raise TypeError(f'PlanVisualizationHook: {name} must be a list, such as [{value!r}], got {value!r}')
            if not len(value):
                raise ValueError(f'PlanVisualizationHook: {name} is empty: name at least one, or leave the hook out')
        for name, number in (('interval', interval), ('max_rows', max_rows)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f'PlanVisualizationHook: {name} must be a whole number >= 1, got {number!r}')
        self.images = list(images)
        self.interval = interval
        self.by_epoch = by_epoch
        self.layers = list(layers)
        self.max_rows = max_rows
        self.pipeline = pipeline
        self._items: list[dict] = []
        self._counts_epochs = True

    def before_train(self, runner: Runner) -> None:
        """Load the images, check the layers, and draw what an untrained model matches."""
        self._items = []
        counts_epochs = not isinstance(runner.train_loop, IterBasedTrainLoop)
        if self.by_epoch and not counts_epochs:
            raise ValueError(
                f'PlanVisualizationHook: by_epoch=True, but {type(runner.train_loop).__name__} counts iterations only. '
                f'Write by_epoch=False, and interval in iterations (training has {runner.max_iters}).'
            )
        self._counts_epochs = counts_epochs if self.by_epoch is None else self.by_epoch
        refusal = why_not(runner.model)
        if refusal:
            runner.logger.warning(f'PlanVisualizationHook draws nothing: {refusal}')
            return
        pipeline = plain_pipeline(runner.cfg) if self.pipeline is None else self.pipeline
        items = fixed_items(runner.train_dataloader.dataset, self.images, pipeline)
        of_images = matchings_of(runner.model, items)
        there = [record.layer for record in max(of_images, key=len)]
        missing = [layer for layer in self.layers if layer not in there]
        if missing:
            raise ValueError(
                f'PlanVisualizationHook: layers: {missing[0]!r} is not among those that '
                f'{type(runner.model).__name__} matches on these images, {there}.'
            )
        self._items = items
        if runner.iter == 0:
            self._draw(runner, of_images, 0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw after every ``interval`` epochs."""
        if self._items and self._counts_epochs and (runner.epoch + 1) % self.interval == 0:
            self._draw(runner, matchings_of(runner.model, self._items), runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Draw after every ``interval`` iterations."""
        if self._items and not self._counts_epochs and (runner.iter + 1) % self.interval == 0:
            self._draw(runner, matchings_of(runner.model, self._items), runner.iter + 1)

    def _draw(self, runner: Runner, of_images: list, step: int) -> None:
        if not is_main_process():
            return
        unit = 'epoch' if self._counts_epochs else 'iteration'
        for name, item, records in zip(self._names(), self._items, of_images):
            for record in records:
                if record.layer in self.layers:
                    last = record.layer == 'last'
                    title = f'{file_of(item)}, {unit} {step}' + ('' if last else f', layer {record.layer}')
                    figure = matching_figure(item, record, title, self.max_rows)
                    full_name = name if last else f'{name}_{record.layer}'
                    runner.visualizer.add_image(full_name, rendered(figure), step)

    def _names(self) -> list[str]:
        """Names of the pictures of the images, which differ."""
        names: list[str] = []
        for index, item in enumerate(self._items):
            name = f'plan_{os.path.splitext(file_of(item))[0]}'
            names.append(f'{name}_{index}' if name in names else name)
        return names
