# Tiny DETR trained on the whole plan of balanced transport, which hardens over training (see dino_tiny_soft.py).
_base_ = './detr_tiny_sinkhorn.py'

model = dict(bbox_head=dict(type='uotod_mmdet.DETRHead'), train_cfg=dict(assigner=dict(reg=0.01)))
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.01, stop=0.001, mode='exponential'),
]
