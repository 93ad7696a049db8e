# Your own data in Pascal VOC format: JPEGImages, Annotations, ImageSets/Main. Copy this file, fill the
# five fields, and name the copy in `_base_` of a config, beside a model, a schedule and runtime.py, with
# num_classes=_base_.num_classes in the head. mmdet reads .jpg only; tools/new_project.py takes other images, too.
data_root = 'data/my_data'  # FILL 1: the folder of the data set
train = 'ImageSets/Main/trainval.txt'  # FILL 2: list of the names of the images, without .jpg, below data_root
val = 'ImageSets/Main/test.txt'  # FILL 3: likewise
classes = ('first class', 'second class')  # FILL 4: names as in the annotation files
img_scale = (640, 640)  # FILL 5: images are resized to fit into this width and height, their ratio kept

num_classes = len(classes)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),  # a box without area cannot be learnt
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='XMLDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=train,
        data_prefix=dict(sub_data_root=''),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='XMLDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=val,
        data_prefix=dict(sub_data_root=''),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='area')
test_evaluator = val_evaluator
