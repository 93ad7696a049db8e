# DETR R50 with balanced transport on DETR's own costs, read hard.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')))
