"""Costs of matching a prediction with a ground truth."""

from .boxes import as_tensor
from .log_iou_cost import LogIoUCost
from .overlaps import pairwise_overlaps
from .pairwise import Batch, as_labels, batch_cost, class_labels, make_batch, pad, prior_boxes
from .prior_costs import InsideGTCost, PriorCenterCost, PriorIoUCost

__all__ = [
    'Batch',
    'InsideGTCost',
    'LogIoUCost',
    'PriorCenterCost',
    'PriorIoUCost',
    'as_labels',
    'as_tensor',
    'batch_cost',
    'class_labels',
    'make_batch',
    'pad',
    'pairwise_overlaps',
    'prior_boxes',
]
