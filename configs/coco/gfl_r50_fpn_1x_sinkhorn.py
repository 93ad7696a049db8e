# GFL R50 with our losses and unbalanced transport, read hard.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../_base_/assigners/dense_sinkhorn_small.py']

model = dict(
    bbox_head=dict(
        loss_cls=dict(type='uotod_mmdet.QualityFocalLoss'),
        loss_dfl=dict(type='uotod_mmdet.DistributionFocalLoss'),
    ),
    train_cfg=dict(assigner={{_base_.dense_sinkhorn_small}}),
)
