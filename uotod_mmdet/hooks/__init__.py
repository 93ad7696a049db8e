"""mmengine hooks."""

from .assigner_schedule_hook import AssignerScheduleHook
from .checkpoint_fit_hook import CheckpointFitHook
from .dataset_fit_hook import DatasetFitHook
from .plan_visualization_hook import PlanVisualizationHook

__all__ = ['AssignerScheduleHook', 'CheckpointFitHook', 'DatasetFitHook', 'PlanVisualizationHook']
