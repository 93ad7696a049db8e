# Tiny Deformable DETR trained on the whole plan of balanced transport, which hardens over training.
_base_ = './deformable_detr_tiny_hungarian.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DeformableDETRHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner', reg=0.02)),
)
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.02, stop=0.0005, mode='exponential', end=6),
]
