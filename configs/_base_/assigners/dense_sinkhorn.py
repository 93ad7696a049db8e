# Unbalanced transport for heads that regress from inside the box (GFL, VFNet, ATSS): overlap, centre distance, and a
# large constant outside the box. Replaces the assigner of a config by `assigner={{_base_.dense_sinkhorn}}`.
dense_sinkhorn = dict(
    _delete_=True,
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=[
        dict(type='IoUCost', iou_mode='giou', weight=1.0),
        dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
        dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
    ],
    gt_mass=9,  # about nine anchors a ground truth, fewer where few have their centre inside it
    reg=0.1,
    reg_pred=None,
    reg_target=1.0,
    background_cost=0.0,
    normalize_cost=False,
    tol=0.05,
)
