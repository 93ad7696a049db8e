# Tiny DETR with balanced transport, read hard.
_base_ = './detr_tiny_hungarian.py'

model = dict(train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')))
