# FCOS R50 trained on the whole plan of unbalanced transport; stock is the config below, whose head has no assigner. The
# costs are those of ../_base_/assigners/point_soft.py.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.FCOSHead'),
    train_cfg=dict(
        assigner=dict(
            type='uotod_mmdet.UnbalancedSinkhornAssigner',
            match_costs=[
                dict(type='uotod_mmdet.SoftLabelCost', weight=1.0),
                dict(type='uotod_mmdet.LogIoUCost', weight=3.0),
                dict(type='uotod_mmdet.SoftCenterCost', weight=1.0),
                dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
            ],
            gt_mass='dynamic_k',
            topq=13,
            reg=0.1,
            reg_pred=None,
            reg_target=100.0,
            normalize_cost=False,
            tol=0.05,
        ),
    ),
)
