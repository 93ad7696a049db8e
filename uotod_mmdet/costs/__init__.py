"""Costs of matching a prediction with a ground truth."""

from uotod_mmdet.ops import CostTerm, pairwise_overlaps

from .batch import BOX_SOURCES, Batch, as_logits, make_batch
from .batch_cost import batch_cost, costs_and_background
from .boxes import as_tensor, float_boxes, ignored_boxes
from .declared import CostReading, declare_cost, reading_of_cost
from .detr_costs import HighOrderCost, PositionModulatedCost
from .dynamic_costs import BinaryCrossEntropyCost, SoftCenterCost, SoftLabelCost, TaskAlignmentCost
from .fcos_costs import GTAreaCost, RegressRangeCost
from .ground_truths import as_labels, class_labels, pad
from .log_iou_cost import LogIoUCost
from .prior_costs import InsideGTCost, PriorCenterCost, PriorIoUCost
from .priors import prior_boxes, prior_centers_and_sizes
from .tokens import has_token_maps, token_maps

__all__ = [
    'BOX_SOURCES',
    'Batch',
    'BinaryCrossEntropyCost',
    'CostReading',
    'CostTerm',
    'GTAreaCost',
    'HighOrderCost',
    'InsideGTCost',
    'LogIoUCost',
    'PositionModulatedCost',
    'PriorCenterCost',
    'PriorIoUCost',
    'RegressRangeCost',
    'SoftCenterCost',
    'SoftLabelCost',
    'TaskAlignmentCost',
    'as_labels',
    'as_logits',
    'as_tensor',
    'batch_cost',
    'class_labels',
    'costs_and_background',
    'declare_cost',
    'float_boxes',
    'has_token_maps',
    'ignored_boxes',
    'make_batch',
    'pad',
    'pairwise_overlaps',
    'prior_boxes',
    'prior_centers_and_sizes',
    'reading_of_cost',
    'token_maps',
]
