"""Assigners: one matching strategy a file, each with a soft ``match`` and a hard ``assign``."""

from .base import TransportAssigner
from .hungarian import HungarianAssigner
from .sinkhorn import BalancedSinkhornAssigner, UnbalancedSinkhornAssigner

__all__ = ['BalancedSinkhornAssigner', 'HungarianAssigner', 'TransportAssigner', 'UnbalancedSinkhornAssigner']
