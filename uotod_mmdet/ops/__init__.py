"""Numerical kernels, each with a torch reference; the only place that chooses between them and knows devices."""

from .box_losses import gathered_box_losses
from .deferred import act_if, is_traced, to_device_of
from .focal_rows import focal_rows, pays_in_blocks, softplus
from .giou import giou_losses
from .nonzero import list_nonzero
from .overlaps import pairwise_overlaps
from .pair_costs import CostTerm, PairInputs, mask_pairs, pair_costs
from .sinkhorn import largest_cost, sinkhorn
from .softmax_rows import softmax_rows

__all__ = [
    'CostTerm',
    'PairInputs',
    'act_if',
    'focal_rows',
    'gathered_box_losses',
    'giou_losses',
    'is_traced',
    'largest_cost',
    'list_nonzero',
    'mask_pairs',
    'pair_costs',
    'pairwise_overlaps',
    'pays_in_blocks',
    'sinkhorn',
    'softmax_rows',
    'softplus',
    'to_device_of',
]
