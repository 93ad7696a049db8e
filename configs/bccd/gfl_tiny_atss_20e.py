# Stock tiny GFL on BCCD: the baseline of gfl_tiny_sinkhorn_20e.py.
_base_ = [
    '../_base_/models/gfl_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/tiny_12e.py',
    '../_base_/runtime.py',
]

model = dict(bbox_head=dict(num_classes=3))
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        convert_to_iter_based=True,
    ),
]
