# Unbalanced transport for soft training of heads of points (RTMDet, YOLOX, FCOS): the costs that RTMDet's
# DynamicSoftLabelAssigner minimises, with the whole plan in place of its best k. Each ground truth gets five
# predictions' worth, as in dense_soft.py.
point_soft = dict(
    _delete_=True,
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    match_costs=[
        dict(type='uotod_mmdet.SoftLabelCost', weight=1.0),
        dict(type='uotod_mmdet.LogIoUCost', weight=3.0),
        dict(type='uotod_mmdet.SoftCenterCost', weight=1.0),
        dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
    ],
    gt_mass=5,
    reg=0.1,
    reg_pred=None,
    reg_target=100.0,
    normalize_cost=False,
    tol=0.05,
)
