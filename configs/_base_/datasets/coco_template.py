# Your own data in COCO format. Copy this file, fill the five fields, and name the copy in `_base_` of a config, beside
# a model, a schedule and runtime.py, with num_classes=_base_.num_classes in the head. tools/new_project.py does it all.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
import os.path as osp  # noqa: E402

data_root = 'data/my_data'  # FILL 1: the folder of the data set
train = ('annotations/train.json', 'train/')  # FILL 2: annotation file and folder of the images, both below data_root
val = ('annotations/val.json', 'val/')  # FILL 3: likewise
classes = ('first class', 'second class')  # FILL 4: names as in the annotation files, in their order
img_scale = (640, 640)  # FILL 5: images are resized to fit into this width and height, their ratio kept

num_classes = len(classes)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
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
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=train[0],
        data_prefix=dict(img=train[1]),
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
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=val[0],
        data_prefix=dict(img=val[1]),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=osp.join(data_root, val[0]), metric='bbox')
test_evaluator = val_evaluator
