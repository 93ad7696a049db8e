# Does a plan in which each ground truth holds one prediction's mass make NMS superfluous? Table 2 of De Plaen et al.,
# CVPR 2023, on tiny SSD. The protocol is the paper's: cost 1 - IoU of anchor and ground truth, background 0.5 (here
# both less 1, which multiplies the whole plan by one factor near 1), reg 0.12 / (log(2 N) + 1), reg_pred 100, hard
# negatives 3 to 1 by mass.
title = 'The need for NMS'
question = 'As reg_target grows, does AP without NMS come close to AP with NMS?'

_paper = dict(reg=None, reg_dimless=0.12, reg_pred=100.0, normalize_cost=False)


def _transport(reg_target):
    return dict(
        config='configs/color_boxes/ssd_tiny_soft.py',
        options=dict(model=dict(train_cfg=dict(assigner=dict(reg_target=reg_target, **_paper)))),
    )


arms = {
    'stock': dict(config='configs/color_boxes/ssd_tiny_maxiou.py'),
    'reg_target 0.01': _transport(0.01),
    'reg_target 0.1': _transport(0.1),
    'reg_target 1': _transport(1.0),
    'reg_target 10': _transport(10.0),
    'reg_target inf': _transport(None),  # the ground truths' mass is kept exactly
}
baseline = 'stock'
data = dict(color_boxes=dict())
epochs = 8
seeds = [0, 1, 2]
metrics = ['AP', 'AR', 'AP_without_nms', 'AR_without_nms']
_large = 'reg_target 10', 'reg_target inf'
claims = [
    dict(
        text=f'At {arm}, AP without NMS is at least 0.9 of AP with NMS.',
        kind='ratio',
        arm=arm,
        metric='AP_without_nms',
        than=arm,
        than_metric='AP',
        at_least=0.9,
    )
    for arm in _large
] + [
    dict(
        text=f"Without NMS, AP at {arm} is above stock's.",
        kind='difference',
        arm=arm,
        metric='AP_without_nms',
        at_least=0,
    )
    for arm in _large
]
