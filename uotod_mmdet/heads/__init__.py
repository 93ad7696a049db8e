"""mmdet's heads, trained on the whole plan of an assigner."""

from .atss_head import ATSSHead
from .ddq_detr_head import DDQDETRHead
from .detr_heads import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DETRHead, DINOHead
from .fcos_head import FCOSHead
from .gfl_head import GFLHead
from .grounding_dino_head import GroundingDINOHead
from .mask2former_head import Mask2FormerHead
from .maskformer_head import MaskFormerHead
from .on_plan import on_plan
from .retina_head import RetinaHead
from .rtmdet_head import RTMDetHead, RTMDetSepBNHead
from .rtmdet_ins_head import RTMDetInsHead, RTMDetInsSepBNHead
from .ssd_head import SSDHead
from .tood_head import TOODHead
from .vfnet_head import VFNetHead
from .yolox_head import YOLOXHead

__all__ = [
    'ATSSHead',
    'ConditionalDETRHead',
    'DABDETRHead',
    'DDQDETRHead',
    'DETRHead',
    'DINOHead',
    'DeformableDETRHead',
    'FCOSHead',
    'GFLHead',
    'RTMDetHead',
    'RTMDetInsHead',
    'RTMDetInsSepBNHead',
    'RTMDetSepBNHead',
    'GroundingDINOHead',
    'Mask2FormerHead',
    'MaskFormerHead',
    'RetinaHead',
    'SSDHead',
    'TOODHead',
    'VFNetHead',
    'YOLOXHead',
    'on_plan',
]
