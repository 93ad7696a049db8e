# What check_package.py trains: a small GFL on the whole plan, on the 16 images of Color Boxes mini ten times. Needs
# nothing of the checkout.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(_delete_=True, type='Kaiming', layer='Conv2d'),
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(
        type='uotod_mmdet.GFLHead',
        num_classes=20,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        loss_cls=dict(type='uotod_mmdet.QualityFocalLoss'),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='uotod_mmdet.dense_soft')),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(250, 200), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
]
color_boxes = dict(type='uotod_mmdet.ColorBoxesDataset', data_root='data', size='mini')
train_pipeline = [pipeline[0], pipeline[2], pipeline[1], pipeline[3]]
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='RepeatDataset', times=10, dataset=dict(split='train', pipeline=train_pipeline, **color_boxes)),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', test_mode=True, pipeline=pipeline, **color_boxes),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='CocoMetric', ann_file='data/mini_v2_seed0/val.json', metric='bbox')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=1)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-3), clip_grad=dict(max_norm=10))
param_scheduler = []
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
randomness = dict(seed=0)
work_dir = 'work_dir'
