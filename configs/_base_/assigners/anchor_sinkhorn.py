# Unbalanced transport for heads that regress from anchors (RetinaNet, SSD): each anchor to its best ground truth, or to
# the background below IoU 0.5. Replaces the assigner of a config by `assigner={{_base_.anchor_sinkhorn}}`.
anchor_sinkhorn = dict(
    _delete_=True,
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=dict(type='IoUCost', iou_mode='iou'),
    background_cost=-0.5,  # the cost is -IoU
    reg=0.02,
    reg_pred=1e3,
    reg_target=1e-2,
    normalize_cost=False,
)
