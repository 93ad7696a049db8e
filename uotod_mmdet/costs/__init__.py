"""Costs of matching a prediction with a ground truth."""

from uotod_mmdet.ops import CostTerm, pairwise_overlaps

from .batch import BOX_SOURCES, Batch, make_batch
from .batch_cost import batch_cost, costs_and_background
from .boxes import as_tensor, float_boxes, ignored_boxes
from .declared import CostReading, declare_cost, reading_of_cost
from .ground_truths import as_labels, class_labels, pad
from .log_iou_cost import LogIoUCost
from .prior_costs import InsideGTCost, PriorCenterCost, PriorIoUCost
from .priors import prior_boxes, prior_centers_and_sizes

__all__ = [
    'BOX_SOURCES',
    'Batch',
    'CostReading',
    'CostTerm',
    'InsideGTCost',
    'LogIoUCost',
    'PriorCenterCost',
    'PriorIoUCost',
    'as_labels',
    'as_tensor',
    'batch_cost',
    'class_labels',
    'costs_and_background',
    'declare_cost',
    'float_boxes',
    'ignored_boxes',
    'make_batch',
    'pad',
    'pairwise_overlaps',
    'prior_boxes',
    'prior_centers_and_sizes',
    'reading_of_cost',
]
