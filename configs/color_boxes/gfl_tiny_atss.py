# Stock tiny GFL: mmdet's losses and ATSSAssigner, the baseline of gfl_tiny_sinkhorn.py.
_base_ = [
    '../_base_/models/gfl_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]
