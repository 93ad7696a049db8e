# Unbalanced transport for soft training of dense heads (GFL, VFNet, ATSS, RetinaNet): the costs of
# dense_sinkhorn.py and the predicted class; a small reg, for a plan that is soft at its edges only; a large reg_target,
# so that each ground truth gets its five anchors' worth wherever anchors have their centre inside it.
dense_soft = dict(
    _delete_=True,
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=[
        dict(type='IoUCost', iou_mode='giou', weight=1.0),
        dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
        dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
        dict(type='FocalLossCost', weight=1.0),
    ],
    gt_mass=5,
    reg=0.03,
    reg_pred=None,
    reg_target=10.0,
    normalize_cost=False,
    tol=0.05,
)
