# DETR R50 trained on the whole plan of balanced transport with its own costs.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DETRHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')),
)
