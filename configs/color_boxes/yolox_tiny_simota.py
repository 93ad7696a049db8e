# Stock tiny YOLOX: mmdet's losses and SimOTAAssigner, the baseline of yolox_tiny_soft.py.
_base_ = [
    '../_base_/models/yolox_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]
