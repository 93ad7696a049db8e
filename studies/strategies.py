# What does each strategy do on each head? mmdet's own assigner, ours read hard (each prediction to its heaviest column,
# as mmdet's heads do), and the whole plan; Color Boxes, the schedule of each config but for the number of epochs.
title = 'Strategy by head'
question = 'On which heads does transport beat the stock assigner, and the whole plan its hard reading?'

_assigner = 'model.train_cfg.assigner'


def _gfl(name, **options):
    return dict(config=f'configs/color_boxes/gfl_tiny_{name}.py', options=options, epochs=6, baseline='GFL, stock')


def _retina(name, **options):
    config = f'configs/color_boxes/retinanet_tiny_{name}.py'
    return dict(config=config, options=options, epochs=6, baseline='RetinaNet, stock')


def _ssd(name, **options):
    return dict(config=f'configs/color_boxes/ssd_tiny_{name}.py', options=options, epochs=8, baseline='SSD, stock')


def _dino(name, **options):
    return dict(config=f'configs/color_boxes/dino_tiny_{name}.py', options=options, epochs=8, baseline='DINO, stock')


def _point(name, config, **options):
    config = f'configs/color_boxes/{name.lower()}_tiny_{config}.py'
    return dict(config=config, options=options, epochs=4, baseline=f'{name}, stock')


_ota = dict(_delete_=True, type='uotod_mmdet.OTAAssigner')
_unbalanced = 'GFL', 'RetinaNet', 'SSD', 'RTMDet', 'YOLOX'
_hard = {f'{_assigner}.hard': True}
_same = {f'{_assigner}.background_cost': 0.0}  # the default; written as in recipe.py, so that runs are shared
arms = {
    'GFL, stock': _gfl('atss', **{f'{_assigner}.topk': 9}),
    'GFL, stock, topk 5': _gfl('atss', **{f'{_assigner}.topk': 5}),
    'GFL, unbalanced, hard': _gfl('soft', **_same, **_hard),
    'GFL, unbalanced, soft': _gfl('soft', **_same),
    'GFL, OTA, hard': _gfl('soft', model=dict(train_cfg=dict(assigner=dict(_ota, hard=True)))),
    'GFL, OTA, soft': _gfl('soft', model=dict(train_cfg=dict(assigner=_ota))),
    'RetinaNet, stock': _retina('maxiou'),
    'RetinaNet, anchors by IoU, hard': _retina('sinkhorn'),
    'RetinaNet, unbalanced, hard': _retina('soft', **_hard),
    'RetinaNet, unbalanced, soft': _retina('soft'),
    'SSD, stock': _ssd('maxiou'),
    'SSD, unbalanced, hard': _ssd('soft', **_hard),
    'SSD, unbalanced, soft': _ssd('soft'),
    'DINO, stock': _dino('hungarian'),
    'DINO, balanced, hard': _dino('soft', **_hard),
    'DINO, balanced, soft': _dino('soft'),
    'RTMDet, stock': _point('RTMDet', 'dynamic'),
    'RTMDet, unbalanced, hard': _point('RTMDet', 'soft', **_hard),
    'RTMDet, unbalanced, soft': _point('RTMDet', 'soft'),
    'YOLOX, stock': _point('YOLOX', 'simota'),
    'YOLOX, unbalanced, hard': _point('YOLOX', 'soft', **_hard),
    'YOLOX, unbalanced, soft': _point('YOLOX', 'soft'),
}
baseline = 'GFL, stock'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AP_s', 'AP_m', 'AR']
claims = [
    dict(text=f'{arm} is above stock.', kind='difference', arm=arm, at_least=0)
    for arm in [f'{head}, unbalanced, soft' for head in _unbalanced] + ['DINO, balanced, soft']
] + [
    dict(
        text=f'{arm}, soft is above its hard reading.',
        kind='difference',
        arm=f'{arm}, soft',
        than=f'{arm}, hard',
        at_least=0,
    )
    for arm in [f'{head}, unbalanced' for head in _unbalanced] + ['DINO, balanced', 'GFL, OTA']
]
