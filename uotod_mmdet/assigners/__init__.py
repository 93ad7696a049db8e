"""Assigners: one matching strategy a file, each with a soft ``match`` and a hard ``assign``."""

from .base import TransportAssigner
from .closest_prediction import ClosestPredictionAssigner
from .closest_target import ClosestTargetAssigner
from .foreign import ForeignAssigner, batch_matcher, check_assigner
from .hungarian import HungarianAssigner
from .matching import Matching
from .ota import OTAAssigner
from .presets import (
    PRESETS,
    RECOMMENDED,
    alignment_soft,
    anchor_sinkhorn,
    dense_sinkhorn,
    dense_sinkhorn_small,
    dense_soft,
    point_soft,
    preset,
    query_soft,
    recommended,
)
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
    'PRESETS',
    'RECOMMENDED',
    'SoftMinAssigner',
    'TransportAssigner',
    'UnbalancedSinkhornAssigner',
    'WeightedSumAssigner',
    'alignment_soft',
    'anchor_sinkhorn',
    'batch_matcher',
    'check_assigner',
    'dense_sinkhorn',
    'dense_sinkhorn_small',
    'dense_soft',
    'point_soft',
    'preset',
    'query_soft',
    'recommended',
]
