# TOOD R50 trained on the whole plan of unbalanced transport; stock is mmdet::tood/tood_r50_fpn_1x_coco.py. After the
# initial epochs, in which ATSSAssigner is kept, the plan is that of task alignment: each ground truth holds what mmdet
# gives it, 13 predictions' worth, inside its box.
_base_ = 'mmdet::tood/tood_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.TOODHead'),
    train_cfg=dict(
        assigner=dict(
            _delete_=True,
            type='uotod_mmdet.UnbalancedSinkhornAssigner',
            match_costs=[
                dict(type='uotod_mmdet.TaskAlignmentCost', alpha=1.0, beta=6.0),
                dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
            ],
            gt_mass=13,
            reg=0.1,
            reg_pred=None,
            reg_target=100.0,
            normalize_cost=False,
            tol=0.05,
        ),
    ),
)
