# What should the soft recipe of a dense head weigh? How much mass a ground truth holds, and overlap by GIoU or by -log
# IoU, against stock ATSS at mmdet's number of anchors and at about as many as the smaller mass, and against the hard
# reading of the same plan. Recipes are chosen here; other data sets confirm them.
title = 'The recipe of a dense head'
question = 'From which mass of a ground truth, and which overlap cost, does tiny GFL learn best?'


def _stock(topk):
    options = {'model.train_cfg.assigner.topk': topk}
    return dict(config='configs/color_boxes/gfl_tiny_atss.py', options=options)


def _transport(gt_mass, log_iou=False, **others):
    overlap = (
        dict(type='uotod_mmdet.LogIoUCost', weight=0.5)
        if log_iou
        else dict(type='IoUCost', iou_mode='giou', weight=1.0)
    )
    costs = [
        overlap,
        dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
        dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
        dict(type='FocalLossCost', weight=1.0),
    ]
    assigner = dict(match_costs=costs, gt_mass=gt_mass, background_cost=1.2 if log_iou else 0.0, **others)
    return dict(
        config='configs/color_boxes/gfl_tiny_soft.py', options=dict(model=dict(train_cfg=dict(assigner=assigner)))
    )


arms = {
    'stock ATSS, topk 9': _stock(9),
    'stock ATSS, topk 5': _stock(5),
    'soft, GIoU, mass 9': _transport(9),
    'soft, GIoU, mass 5': _transport(5),
    'hard, GIoU, mass 5': _transport(5, hard=True),
    'soft, log IoU, mass 5': _transport(5, log_iou=True),
}
baseline = 'stock ATSS, topk 9'
data = dict(color_boxes=dict())
epochs = 6
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AP_s', 'AP_m', 'AP_l', 'AR']
claims = [
    dict(
        text='Soft with five predictions a ground truth is at least level with stock.',
        kind='difference',
        arm='soft, GIoU, mass 5',
        at_least=0,
        judge='reach',
    ),
    dict(
        text='Soft with five predictions a ground truth is above stock at its own better number of anchors.',
        kind='difference',
        arm='soft, GIoU, mass 5',
        than='stock ATSS, topk 5',
        at_least=0,
    ),
    dict(
        text='The soft plan is better than its hard reading.',
        kind='difference',
        arm='soft, GIoU, mass 5',
        than='hard, GIoU, mass 5',
        at_least=0,
    ),
]
