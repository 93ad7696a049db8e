# Stock tiny RetinaNet: the baseline of retinanet_tiny_sinkhorn.py.
_base_ = [
    '../_base_/models/retinanet_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]
