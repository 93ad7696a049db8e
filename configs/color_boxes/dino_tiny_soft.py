# Tiny DINO trained on the whole plan of balanced transport.
_base_ = './dino_tiny_hungarian.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DINOHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')),
)
