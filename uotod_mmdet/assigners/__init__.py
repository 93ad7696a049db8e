"""Assigners: one matching strategy a file, each with a soft ``match`` and a hard ``assign``."""

from .base import TransportAssigner
from .closest_prediction import ClosestPredictionAssigner
from .closest_target import ClosestTargetAssigner
from .foreign import ForeignAssigner, batch_matcher, check_assigner
from .hungarian import HungarianAssigner
from .matching import Matching
from .ota import OTAAssigner
from .sinkhorn import BalancedSinkhornAssigner, UnbalancedSinkhornAssigner
from .soft_min import SoftMinAssigner
from .weighted_sum import WeightedSumAssigner

__all__ = [
    'BalancedSinkhornAssigner',
    'ClosestPredictionAssigner',
    'ClosestTargetAssigner',
    'ForeignAssigner',
    'HungarianAssigner',
    'Matching',
    'OTAAssigner',
    'SoftMinAssigner',
    'TransportAssigner',
    'UnbalancedSinkhornAssigner',
    'WeightedSumAssigner',
    'batch_matcher',
    'check_assigner',
]
