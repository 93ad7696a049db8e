# SSD300 with unbalanced transport, read hard.
_base_ = ['mmdet::ssd/ssd300_coco.py', '../_base_/assigners/anchor_sinkhorn.py']

model = dict(
    train_cfg=dict(assigner={{_base_.anchor_sinkhorn}}),
)
