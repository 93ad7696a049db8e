# Tiny GFL on BCCD, trained on the whole plan of unbalanced transport with prediction-aware costs.
_base_ = ['./gfl_tiny_sinkhorn_20e.py', '../_base_/assigners/dense_soft.py']

model = dict(
    bbox_head=dict(type='uotod_mmdet.GFLHead'),
    train_cfg=dict(assigner={{_base_.dense_soft}}),
)
