# Stock tiny RTMDet: mmdet's losses and DynamicSoftLabelAssigner, the baseline of rtmdet_tiny_soft.py.
_base_ = [
    '../_base_/models/rtmdet_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]
