"""mmdet's heads, trained on the whole plan of an assigner."""

from .atss_head import ATSSHead
from .detr_heads import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DETRHead, DINOHead
from .gfl_head import GFLHead
from .mask2former_head import Mask2FormerHead
from .maskformer_head import MaskFormerHead
from .retina_head import RetinaHead
from .ssd_head import SSDHead
from .vfnet_head import VFNetHead

__all__ = [
    'ATSSHead',
    'ConditionalDETRHead',
    'DABDETRHead',
    'DETRHead',
    'DINOHead',
    'DeformableDETRHead',
    'GFLHead',
    'Mask2FormerHead',
    'MaskFormerHead',
    'RetinaHead',
    'SSDHead',
    'VFNetHead',
]
