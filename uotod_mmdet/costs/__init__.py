"""Costs of matching a prediction with a ground truth."""

from .pairwise import pairwise_cost, prior_boxes
from .prior_costs import InsideGTCost, PriorCenterCost

__all__ = ['InsideGTCost', 'PriorCenterCost', 'pairwise_cost', 'prior_boxes']
