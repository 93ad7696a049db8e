# Does a DETR learn faster from a soft plan? Figure 5 of De Plaen et al., CVPR 2023, on tiny two-stage Deformable DETR
# without denoising queries and with a learning rate that stays, as before the drop of the paper's DETR. The protocol of
# the second arm is the paper's: reg 0.12 / (log(2 N) + 1) of the largest cost, class cost 5 in the matching.
title = 'Convergence'
question = 'In how many epochs does balanced transport reach the last AP of Hungarian matching?'

_soft = 'configs/color_boxes/deformable_detr_tiny_soft.py'
_paper = dict(reg=None, reg_dimless=0.12)
arms = {
    'Hungarian': dict(config='configs/color_boxes/deformable_detr_tiny_hungarian.py'),
    'balanced OT': dict(
        config=_soft,
        options={
            'model.train_cfg.assigner': _paper,
            'model.train_cfg.assigner.match_costs.0.weight': 5.0,
            'custom_hooks': [],
        },
    ),
    'balanced OT that hardens': dict(config=_soft),
}
baseline = 'Hungarian'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AP_s', 'AP_m', 'AR']
claims = [
    dict(
        text=f'{arm} reaches the last AP of Hungarian matching in at most 60 % of the epochs.',
        kind='epochs',
        arm=arm,
        at_most=0.6,
    )
    for arm in ('balanced OT', 'balanced OT that hardens')
]
