# Tiny SSD trained on the whole plan of unbalanced transport, hard negative mining included.
_base_ = ['./ssd_tiny_maxiou.py', '../_base_/assigners/anchor_sinkhorn.py']

model = dict(train_cfg=dict(assigner={{_base_.anchor_sinkhorn}}))
