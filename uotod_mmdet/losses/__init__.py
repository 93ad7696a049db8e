"""Losses: DetectionLoss, which matches by itself, and quality-aware ones with mmdet's names, arguments and values."""

from .detection_loss import DetectionLoss
from .distribution_focal_loss import DistributionFocalLoss, distribution_focal_loss
from .iou_aware_bce_loss import IoUAwareBCELoss
from .matchability_aware_loss import MatchabilityAwareLoss
from .pair_quality_loss import PairQualityLoss
from .position_supervised_loss import PositionSupervisedLoss
from .quality_focal_loss import QualityFocalLoss, quality_focal_loss
from .varifocal_loss import VarifocalLoss, varifocal_loss

__all__ = [
    'DetectionLoss',
    'DistributionFocalLoss',
    'IoUAwareBCELoss',
    'MatchabilityAwareLoss',
    'PairQualityLoss',
    'PositionSupervisedLoss',
    'QualityFocalLoss',
    'VarifocalLoss',
    'distribution_focal_loss',
    'quality_focal_loss',
    'varifocal_loss',
]
