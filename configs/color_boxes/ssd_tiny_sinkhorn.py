# Tiny SSD with unbalanced transport, read hard.
_base_ = ['./ssd_tiny_maxiou.py', '../_base_/assigners/anchor_sinkhorn.py']

model = dict(train_cfg=dict(assigner={{_base_.anchor_sinkhorn}}))
