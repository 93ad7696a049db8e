"""mmengine hooks."""

from .assigner_schedule_hook import AssignerScheduleHook
from .checkpoint_fit_hook import CheckpointFitHook
from .dataset_fit_hook import DatasetFitHook
from .fixed_images_hook import FixedImagesHook
from .matching_stability_hook import MatchingStabilityHook
from .plan_visualization_hook import PlanVisualizationHook

__all__ = [
    'AssignerScheduleHook',
    'CheckpointFitHook',
    'DatasetFitHook',
    'FixedImagesHook',
    'MatchingStabilityHook',
    'PlanVisualizationHook',
]
