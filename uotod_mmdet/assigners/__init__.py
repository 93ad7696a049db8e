"""Assigners: one matching strategy a file, each with a soft ``match`` and a hard ``assign``."""

from .base import TransportAssigner
from .closest_prediction import ClosestPredictionAssigner
from .closest_target import ClosestTargetAssigner
from .hungarian import HungarianAssigner
from .match_batch import check_assigner, match_batch, reads_predicted_boxes
from .ota import OTAAssigner
from .sinkhorn import BalancedSinkhornAssigner, UnbalancedSinkhornAssigner
from .soft_min import SoftMinAssigner
from .weighted_sum import WeightedSumAssigner

__all__ = [
    'BalancedSinkhornAssigner',
    'ClosestPredictionAssigner',
    'ClosestTargetAssigner',
    'HungarianAssigner',
    'OTAAssigner',
    'SoftMinAssigner',
    'TransportAssigner',
    'UnbalancedSinkhornAssigner',
    'WeightedSumAssigner',
    'check_assigner',
    'match_batch',
    'reads_predicted_boxes',
]
