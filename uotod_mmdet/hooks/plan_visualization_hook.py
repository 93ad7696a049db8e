"""Draw what answers for the ground truths of a few images, during training."""

import os
from collections.abc import Sequence
from typing import Optional, Union

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from uotod_mmdet.registry import HOOKS
from uotod_mmdet.visualization import Record, file_of, matchings_of, unwrapped
from uotod_mmdet.visualization.figures import matching_figure, rendered

from .fixed_images_hook import FixedImagesHook


@HOOKS.register_module()
class PlanVisualizationHook(FixedImagesHook):
    """Draw the matching of a few training images every so many epochs or iterations, and once before training::

        custom_hooks = [dict(type='uotod_mmdet.PlanVisualizationHook', images=[0, '000139.jpg'], interval=1)]

    A picture shows the image with its ground truths and the predictions that answer for them, and the heaviest rows of
    cost and plan. The images look the same each time: without augmentation, resized as in validation. Pictures go to
    the backends of the config's visualizer, under the name ``plan_<image>``, ``plan_<image>_<layer>`` for layers other
    than the last, and the number of epochs or iterations done as their step: LocalVisBackend writes
    ``vis_data/vis_image/plan_000139_3.png``, TensorboardVisBackend and WandbVisBackend show a slider.
    ``tools/show_run.py WORK_DIR --plans`` makes an animation of the files.

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
        ValueError: If ``max_rows`` is out of range, or the model does not have one of the layers; and what
            :class:`FixedImagesHook` raises.
    """

    def __init__(
        self,
        images: Sequence[Union[int, str]] = (0,),
        interval: int = 1,
        by_epoch: Optional[bool] = None,
        layers: Sequence[str] = ('last',),
        max_rows: int = 20,
        pipeline: Optional[Sequence[dict]] = None,
    ) -> None:
        super().__init__(images, interval, by_epoch, pipeline)
        self.layers = self._list('layers', layers)
        self.max_rows = self._whole('max_rows', max_rows)

    def before_train(self, runner: Runner) -> None:
        """See :class:`FixedImagesHook`; check the layers, and draw what an untrained model matches."""
        super().before_train(runner)
        if not self._items:
            return
        of_images = matchings_of(runner.model, self._items)
        there = [record.layer for record in max(of_images, key=len)]
        missing = [layer for layer in self.layers if layer not in there]
        if missing:
            raise ValueError(
                f'PlanVisualizationHook: layers: {missing[0]!r} is not among those that '
                f'{type(unwrapped(runner.model)).__name__} matches on these images, {there}.'
            )
        if runner.iter == 0:
            self.look(runner, of_images, 0)

    def look(self, runner: Runner, of_images: list[list[Record]], step: int) -> None:
        """Draw the matchings."""
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
