"""Costs of matching a prediction with a ground truth."""

from .pairwise import Batch, batch_cost, make_batch, prior_boxes
from .prior_costs import InsideGTCost, PriorCenterCost

__all__ = ['Batch', 'InsideGTCost', 'PriorCenterCost', 'batch_cost', 'make_batch', 'prior_boxes']
