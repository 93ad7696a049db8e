# Tiny RTMDet trained on the whole plan of unbalanced transport, with the costs of mmdet's dynamic assigners.
_base_ = ['./rtmdet_tiny_dynamic.py', '../_base_/assigners/point_soft.py']

model = dict(bbox_head=dict(type='uotod_mmdet.RTMDetSepBNHead'), train_cfg=dict(assigner={{_base_.point_soft}}))
