# Stock tiny Deformable DETR, the baseline of deformable_detr_tiny_soft.py; the learning rate stays, for curves of AP.
_base_ = [
    '../_base_/models/deformable_detr_tiny.py',
    '../_base_/datasets/color_boxes.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
]
