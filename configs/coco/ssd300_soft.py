# SSD300 trained on the whole plan of unbalanced transport, hard negative mining included.
_base_ = ['mmdet::ssd/ssd300_coco.py', '../_base_/assigners/anchor_sinkhorn.py']

model = dict(
    bbox_head=dict(type='uotod_mmdet.SSDHead'),
    train_cfg=dict(assigner={{_base_.anchor_sinkhorn}}),
)
