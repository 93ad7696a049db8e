"""Numerical kernels, each with a torch reference; the only place that chooses between them and knows devices."""

from .assignment import assign, one_hot_plan
from .box_losses import gathered_box_losses
from .deferred import act_if, is_traced, to_device_of
from .distribution_rows import distribution_rows
from .focal_rows import focal_rows, pays_in_blocks, power, softplus
from .giou import giou_losses
from .overlaps import pairwise_overlaps
from .pair_costs import CostTerm, PairInputs, mask_pairs, pair_costs
from .plan import list_pairs
from .sinkhorn import largest_cost, sinkhorn
from .softmax_rows import softmax_rows

__all__ = [
    'assign',
    'distribution_rows',
    'one_hot_plan',
    'CostTerm',
    'PairInputs',
    'act_if',
    'focal_rows',
    'gathered_box_losses',
    'giou_losses',
    'is_traced',
    'largest_cost',
    'list_pairs',
    'mask_pairs',
    'pair_costs',
    'pairwise_overlaps',
    'pays_in_blocks',
    'power',
    'sinkhorn',
    'softmax_rows',
    'softplus',
    'to_device_of',
]
