# Stock tiny DETR: the baseline of detr_tiny_sinkhorn.py. DETR needs far more than 12 epochs from scratch.
_base_ = [
    '../_base_/models/detr_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=0.1))
