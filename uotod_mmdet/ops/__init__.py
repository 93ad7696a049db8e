"""Numerical kernels, each with a torch reference; the only place that chooses between them and knows devices."""

from .deferred import act_if, to_device_of
from .sinkhorn import largest_cost, sinkhorn

__all__ = ['act_if', 'largest_cost', 'sinkhorn', 'to_device_of']
