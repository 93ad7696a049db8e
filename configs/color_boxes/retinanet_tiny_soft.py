# Tiny RetinaNet trained on the whole plan of unbalanced transport, with prediction-aware costs.
_base_ = ['./retinanet_tiny_maxiou.py', '../_base_/assigners/dense_soft.py']

model = dict(bbox_head=dict(type='uotod_mmdet.RetinaHead'), train_cfg=dict(assigner={{_base_.dense_soft}}))
