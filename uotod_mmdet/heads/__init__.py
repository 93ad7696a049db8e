"""mmdet's heads, trained on the whole plan of an assigner."""

from .atss_head import ATSSHead
from .ddq_detr_head import DDQDETRHead
from .detr_heads import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DETRHead, DINOHead
from .gfl_head import GFLHead
from .grounding_dino_head import GroundingDINOHead
from .on_plan import on_plan
from .retina_head import RetinaHead
from .ssd_head import SSDHead
from .vfnet_head import VFNetHead

__all__ = [
    'ATSSHead',
    'ConditionalDETRHead',
    'DABDETRHead',
    'DDQDETRHead',
    'DETRHead',
    'DINOHead',
    'DeformableDETRHead',
    'GFLHead',
    'GroundingDINOHead',
    'RetinaHead',
    'SSDHead',
    'VFNetHead',
    'on_plan',
]
