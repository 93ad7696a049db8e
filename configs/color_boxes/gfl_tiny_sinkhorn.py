# Tiny GFL with our losses and unbalanced transport, read hard.
_base_ = ['./gfl_tiny_atss.py', '../_base_/assigners/dense_sinkhorn.py']

model = dict(
    bbox_head=dict(
        loss_cls=dict(type='uotod_mmdet.QualityFocalLoss'),
        loss_dfl=dict(type='uotod_mmdet.DistributionFocalLoss'),
    ),
    train_cfg=dict(assigner={{_base_.dense_sinkhorn}}),
)
