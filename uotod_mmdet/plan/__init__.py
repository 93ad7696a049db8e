"""A plan as weighted pairs, and any loss on these pairs."""

from . import known_classification  # declares how mmdet's losses read a plan
from .classification import (
    Reading,
    Rows,
    classification_losses,
    copies_no_rows,
    declare_reading,
    reading_of,
    sum_by_row,
)
from .contract import (
    ROWS,
    SOFTMAX,
    check_box_loss,
    check_class_weight,
    check_classification_loss,
    check_loss,
    check_mask_losses,
)
from .known_classification import entries, faster_quality, faster_varifocal, quality_focal_rows, varifocal_rows
from .localisation import box_losses, pair_losses
from .masks import Comparison, MaskPairs, mask_losses
from .pairs import MIN_WEIGHT, Pairs, check_min_weight, expand
from .statistics import plan_statistics
from .text_tokens import text_token_losses

__all__ = [
    'MIN_WEIGHT',
    'Comparison',
    'MaskPairs',
    'ROWS',
    'SOFTMAX',
    'Pairs',
    'Reading',
    'Rows',
    'box_losses',
    'check_box_loss',
    'check_class_weight',
    'check_classification_loss',
    'check_loss',
    'check_mask_losses',
    'check_min_weight',
    'classification_losses',
    'copies_no_rows',
    'declare_reading',
    'entries',
    'expand',
    'faster_quality',
    'faster_varifocal',
    'known_classification',
    'mask_losses',
    'pair_losses',
    'plan_statistics',
    'quality_focal_rows',
    'reading_of',
    'sum_by_row',
    'text_token_losses',
    'varifocal_rows',
]
