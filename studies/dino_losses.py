# Which classification loss suits a DETR on the whole plan? Color Boxes, dino_tiny_soft.py but for loss_cls and, in two
# arms, the hard reading. Each loss has the parameters of its paper, PositionSupervisedLoss the weight of Stable-DINO.
title = 'Classification losses of DINO'
question = 'Do losses that learn the quality of a box beat Focal Loss on a DETR, where most of them come from?'

_losses = {
    'Focal': None,  # that of the config
    'Quality Focal': dict(type='uotod_mmdet.QualityFocalLoss', use_sigmoid=True),
    'Matchability-aware': dict(type='uotod_mmdet.MatchabilityAwareLoss', use_sigmoid=True),
    'IoU-aware BCE': dict(type='uotod_mmdet.IoUAwareBCELoss', use_sigmoid=True),
    'Position-supervised': dict(type='uotod_mmdet.PositionSupervisedLoss', use_sigmoid=True, loss_weight=6.0),
}
_hard = {'model.train_cfg.assigner.hard': True}


def _dino(loss, **options):
    if loss is not None:
        options['model.bbox_head.loss_cls'] = dict(loss, _delete_=True)
    return dict(config='configs/color_boxes/dino_tiny_soft.py', options=options, epochs=8)


arms = {name: _dino(loss) for name, loss in _losses.items()}
arms |= {f'{name}, read hard': _dino(_losses[name], **_hard) for name in ('Focal', 'Matchability-aware')}
baseline = 'Focal'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AP75', 'AP_s', 'AP_m', 'AR']
claims = [
    dict(text=f'{name}: above Focal Loss.', kind='difference', arm=name, at_least=0)
    for name in _losses
    if name != 'Focal'
] + [
    dict(
        text=f'{name}: the whole plan is above its hard reading.',
        kind='difference',
        arm=name,
        than=f'{name}, read hard',
        at_least=0,
    )
    for name in ('Focal', 'Matchability-aware')
]
