"""What the hooks share that look at the matching of a few fixed images during training."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from uotod_mmdet.visualization import Record, fixed_items, matchings_of, plain_pipeline, why_not


class FixedImagesHook(Hook):
    """Base of the hooks that look at the matching of fixed training images every so many epochs or iterations.

    The images look the same each time: without augmentation, resized as in validation. Between two looks the hook does
    nothing. The weights that come out of training are those without the hook, bit for bit: see
    :func:`~uotod_mmdet.visualization.matchings_of`. In distributed training all processes compute the matchings, and
    the first one writes. A model whose matching cannot be seen, such as Faster R-CNN or Mask2Former, is warned of once
    and trains on.

    Args:
        images: For each image its index in the training set, or its file name or id as a text.
        interval: Epochs or iterations from one look to the next.
        by_epoch: True counts epochs, False iterations; None: as the training loop counts.
        pipeline: Transforms of the images, with PackDetInputs last; None: see
            :func:`~uotod_mmdet.visualization.plain_pipeline`.

    Raises:
        TypeError: If ``images`` is not a list.
        ValueError: If an argument is out of range, the training set does not have one of the images, or epochs are to
            be counted in a training loop that counts iterations only.
    """

    priority = 'LOW'

    def __init__(
        self,
        images: Sequence[Union[int, str]],
        interval: int = 1,
        by_epoch: Optional[bool] = None,
        pipeline: Optional[Sequence[dict]] = None,
    ) -> None:
        self.images = self._list('images', images)
        self.interval = self._whole('interval', interval)
        self.by_epoch = by_epoch
        self.pipeline = pipeline
        self._items: list[dict] = []
        self._counts_epochs = True

    @abstractmethod
    def look(self, runner: Runner, of_images: list[list[Record]], step: int) -> None:
        """Use the matchings of the images after ``step`` epochs or iterations."""

    def _list(self, name: str, values: Any) -> list:
        if isinstance(values, (str, int)):
            raise TypeError(f'{type(self).__name__}: {name} must be a list, such as [{values!r}], got {values!r}')
        if not len(values):
            raise ValueError(f'{type(self).__name__}: {name} is empty: name at least one, or leave the hook out')
        return list(values)

    def _whole(self, name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f'{type(self).__name__}: {name} must be a whole number >= 1, got {value!r}')
        return value

    def before_train(self, runner: Runner) -> None:
        """Find out what the loop counts and whether the model's matching can be seen, and load the images."""
        self._items = []
        counts_epochs = not isinstance(runner.train_loop, IterBasedTrainLoop)
        if self.by_epoch and not counts_epochs:
            raise ValueError(
                f'{type(self).__name__}: by_epoch=True, but {type(runner.train_loop).__name__} counts iterations only. '
                f'Write by_epoch=False, and interval in iterations (training has {runner.max_iters}).'
            )
        self._counts_epochs = counts_epochs if self.by_epoch is None else self.by_epoch
        refusal = why_not(runner.model)
        if refusal:
            runner.logger.warning(f'{type(self).__name__} does nothing: {refusal}')
            return
        pipeline = plain_pipeline(runner.cfg) if self.pipeline is None else self.pipeline
        self._items = fixed_items(runner.train_dataloader.dataset, self.images, pipeline)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look after every ``interval`` epochs."""
        if self._counts_epochs:
            self._look(runner, runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Look after every ``interval`` iterations."""
        if not self._counts_epochs:
            self._look(runner, runner.iter + 1)

    def _look(self, runner: Runner, step: int) -> None:
        if self._items and step % self.interval == 0:
            self.look(runner, matchings_of(runner.model, self._items), step)
