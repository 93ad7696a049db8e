# Do the shipped recipes of soft training hold on real data? Folds, so that every image is tested once; models from
# scratch, 256 pixels. The recipe was chosen on Color Boxes and BCCD; aquarium and pear confirm.
title = 'Real data'
question = 'Is the dense recipe, as shipped, at least level with stock on data sets that are nothing like Color Boxes?'


def _stock(topk):
    options = {'model.train_cfg.assigner.topk': topk}
    return dict(config='configs/color_boxes/gfl_tiny_atss.py', options=options)


arms = {
    'GFL, stock': _stock(9),
    'GFL, stock, topk 5': _stock(5),
    'GFL, soft': dict(config='configs/color_boxes/gfl_tiny_soft.py'),
    'RetinaNet, stock': dict(config='configs/color_boxes/retinanet_tiny_maxiou.py', baseline='RetinaNet, stock'),
    'RetinaNet, soft': dict(config='configs/color_boxes/retinanet_tiny_soft.py', baseline='RetinaNet, stock'),
}
baseline = 'GFL, stock'
options = {'train_cfg.val_interval': 5}
_common = dict(folds=4, batch_size=4)  # many steps of few images: the data sets are small
data = dict(
    bccd=dict(folder='${BCCD_ROOT}', img_scale=(256, 192), epochs=20, **_common),
    aquarium=dict(folder='${AQUARIUM_ROOT}', img_scale=(256, 256), epochs=20, **_common),
    # tiles of one photo overlap
    pear=dict(folder='${PEAR_ROOT}', img_scale=(256, 256), epochs=30, group=r'(.*)_\d+\.jpg$', **_common),
)
metrics = ['AP', 'AP50', 'AP_s', 'AP_m', 'AP_l', 'AR']
claims = [
    dict(
        text='Soft GFL is at least level with stock.',
        kind='difference',
        arm='GFL, soft',
        at_least=0,
        judge='reach',
    ),
    dict(
        text='Soft RetinaNet is at least level with stock.',
        kind='difference',
        arm='RetinaNet, soft',
        at_least=0,
        judge='reach',
    ),
    dict(
        text='Over the data sets together, soft GFL is above stock by 0.01 AP or more.',
        kind='difference',
        arm='GFL, soft',
        at_least=0.01,
        pooled=True,
    ),
    dict(
        text='Over the data sets together, soft RetinaNet is above stock by 0.01 AP or more.',
        kind='difference',
        arm='RetinaNet, soft',
        at_least=0.01,
        pooled=True,
    ),
    dict(
        text='Soft GFL is above stock with five anchors a ground truth.',
        kind='difference',
        arm='GFL, soft',
        than='GFL, stock, topk 5',
        at_least=0,
        pooled=True,
    ),
]
