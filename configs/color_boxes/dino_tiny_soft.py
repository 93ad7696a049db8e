# Tiny DINO trained on the whole plan of balanced transport, which hardens over training: without NMS, a plan that stays
# soft teaches duplicates.
_base_ = './dino_tiny_hungarian.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DINOHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner', reg=0.01)),
)
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.01, stop=0.001, mode='exponential'),
]
