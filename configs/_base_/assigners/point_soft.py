# Unbalanced transport for soft training of heads of points (RTMDet, YOLOX, FCOS): the costs that RTMDet's
# DynamicSoftLabelAssigner minimises, with the whole plan in place of its best k. Each ground truth gets as many
# predictions' worth as its 13 largest IoUs sum to, at least one.
point_soft = dict(
    _delete_=True,
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
)
