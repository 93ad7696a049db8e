# Which classification loss suits GFL, read hard and on the whole plan? Color Boxes, gfl_tiny_soft.py but for loss_cls
# and the number of epochs. Each loss has the parameters of its paper, PositionSupervisedLoss the weight of Stable-DINO.
title = 'Classification losses'
question = 'Do the losses of Align-DETR, DEIM and Stable-DINO beat Quality Focal, Varifocal and Focal Loss?'

_hard = {'model.train_cfg.assigner.hard': True}
_same = {'model.train_cfg.assigner.background_cost': 0.0}  # the default; written as in strategies.py, to share runs
_losses = {
    'Quality Focal': None,  # that of the config
    'Varifocal': dict(type='uotod_mmdet.VarifocalLoss', use_sigmoid=True),
    'Focal': dict(type='FocalLoss', use_sigmoid=True),
    'Matchability-aware': dict(type='uotod_mmdet.MatchabilityAwareLoss', use_sigmoid=True),
    'IoU-aware BCE': dict(type='uotod_mmdet.IoUAwareBCELoss', use_sigmoid=True),
    'Position-supervised': dict(type='uotod_mmdet.PositionSupervisedLoss', use_sigmoid=True, loss_weight=6.0),
}


def _gfl(loss, reading):
    options = dict(_same, **(_hard if reading == 'hard' else {}))
    if loss is not None:
        options['model.bbox_head.loss_cls'] = dict(loss, _delete_=True)
    return dict(
        config='configs/color_boxes/gfl_tiny_soft.py', options=options, epochs=6, baseline=f'Quality Focal, {reading}'
    )


arms = {f'{name}, {reading}': _gfl(loss, reading) for reading in ('hard', 'soft') for name, loss in _losses.items()}
baseline = 'Quality Focal, soft'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AP75', 'AP_s', 'AP_m', 'AR']
claims = [
    dict(text=f'{name}, {reading}: above Quality Focal Loss.', kind='difference', arm=f'{name}, {reading}', at_least=0)
    for reading in ('hard', 'soft')
    for name in _losses
    if name in ('Matchability-aware', 'IoU-aware BCE', 'Position-supervised')
] + [
    dict(
        text=f'{name}: the whole plan is above its hard reading.',
        kind='difference',
        arm=f'{name}, soft',
        than=f'{name}, hard',
        at_least=0,
    )
    for name in _losses
]
