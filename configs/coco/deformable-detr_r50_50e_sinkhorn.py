# Deformable DETR R50 with balanced transport on its own costs, read hard.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')))
