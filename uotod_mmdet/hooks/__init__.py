"""mmengine hooks."""

from .assigner_schedule_hook import AssignerScheduleHook
from .checkpoint_fit_hook import CheckpointFitHook

__all__ = ['AssignerScheduleHook', 'CheckpointFitHook']
