# DINO R50 trained on the whole plan of balanced transport with its own costs.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DINOHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')),
)
