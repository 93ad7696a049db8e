# dense_soft.py for data in which some objects are far smaller than the smallest anchors, as in COCO and BCCD (see
# dense_sinkhorn_small.py).
dense_soft_small = dict(
    _delete_=True,
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=[
        dict(type='uotod_mmdet.LogIoUCost', weight=0.5),
        dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
        dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
        dict(type='FocalLossCost', weight=1.0),
    ],
    gt_mass=9,
    reg=0.03,
    reg_pred=None,
    reg_target=10.0,
    background_cost=1.2,  # what an anchor of IoU 0.09 with its centre in place costs
    normalize_cost=False,
    tol=0.05,
)
