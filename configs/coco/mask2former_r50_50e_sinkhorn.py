# Mask2Former R50 with balanced transport on its own costs of masks and classes, read hard.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

model = dict(train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner')))
