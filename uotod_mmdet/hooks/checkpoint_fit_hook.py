"""Refuse a checkpoint that belongs to another model."""

import re
from typing import cast

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from uotod_mmdet.registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Stop before a checkpoint is loaded that lacks parameters of the model or has them in other shapes.

    mmengine logs the difference and goes on with random weights in their place, which is what fine-tuning wants and
    what testing and resuming do not: ``tools/test.py`` and ``tools/train.py --resume`` add this hook.

    Raises:
        ValueError: With the number of parameters missing and differing, and the first of each.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes."""
        check_checkpoint(runner.model, checkpoint)


def check_checkpoint(model: nn.Module, checkpoint: dict) -> None:
    """Check that a checkpoint holds each parameter and buffer of ``model``, in the model's shapes.

    Raises:
        ValueError: See :class:`CheckpointFitHook`.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    held = checkpoint.get('state_dict', checkpoint)
    held = {re.sub(r'^module\.', '', name): value for name, value in held.items()}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in held]
    differing = [name for name in wanted if name in held and held[name].shape != wanted[name].shape]
    if not missing and not differing:
        return
    found = []
    if missing:
        found.append(f'{len(missing)} of {len(wanted)} are missing in it (first: {missing[0]})')
    if differing:
        name = differing[0]
        found.append(
            f'{len(differing)} have another shape (first: {name}, {tuple(held[name].shape)} in the checkpoint, '
            f'{tuple(wanted[name].shape)} in the model)'
        )
    raise ValueError(
        'The checkpoint is of another model than the config: of the parameters and buffers of the model '
        f'{" and ".join(found)}. Give the config that it was trained with; to start from its weights where they '
        'fit, use load_from in the config instead of --resume.'
    )
