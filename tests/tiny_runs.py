"""Short runs of a tiny detector by the tools, on six images of a folder of their own."""

import copy
import json
import sys

from mmengine.config import Config
from test_tools import TOOLS, call_tool, logs, scalars
from tiny_models import tiny_config

sys.path.insert(0, str(TOOLS))
import show_run  # noqa: E402

NAMES = ('red', 'green', 'blue', 'grey')
SOFT = dict(
    type='uotod_mmdet.UnbalancedSinkhornAssigner',
    box_source='priors',
    match_costs=[
        dict(type='IoUCost', iou_mode='giou'),
        dict(type='uotod_mmdet.PriorCenterCost'),
        dict(type='FocalLossCost'),
    ],
    reg=0.1,
)


def write_annotations(root, name, labels=(0, 1, 2, 3, 0, 1), names=NAMES, box=(8, 8, 40, 32)):
    """Six images of one object each, in COCO's format; ids are those of the category's place."""
    images = [dict(id=index, file_name=f'{index}.png', width=64, height=64) for index in range(len(labels))]
    annotations = [
        dict(id=index + 1, image_id=index, category_id=label + 1, bbox=list(box), area=box[2] * box[3], iscrowd=0)
        for index, label in enumerate(labels)
    ]
    categories = [dict(id=index, name=name) for index, name in enumerate(names, start=1)]
    (root / name).write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def tiny_run(data, **changes):
    """A config, as a dict: three iterations an epoch, validation of all images."""
    model = tiny_config('GFLHead', SOFT)
    model.bbox_head.type = 'uotod_mmdet.GFLHead'
    model.bbox_head.loss_cls.type = 'uotod_mmdet.QualityFocalLoss'
    model.bbox_head.loss_dfl.type = 'uotod_mmdet.DistributionFocalLoss'
    model.bbox_head.norm_cfg = dict(type='BN')  # GroupNorm cannot normalise a single pixel
    model.test_cfg.score_thr = 0.0
    load, annotations = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    dataset = dict(
        type='CocoDataset',
        data_root=str(data),
        ann_file='train.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=NAMES),
    )
    loader = dict(batch_size=2, num_workers=0)
    train = dict(**dataset, pipeline=[load, annotations, dict(type='PackDetInputs')])
    val = dict(**dataset, test_mode=True)
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    val['pipeline'] = [load, resize, annotations, dict(type='PackDetInputs', meta_keys=meta_keys)]
    cfg = dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=dict(dataset=train, sampler=dict(type='DefaultSampler', shuffle=True), **loader),
        val_dataloader=dict(dataset=val, sampler=dict(type='DefaultSampler', shuffle=False), **loader),
        val_evaluator=dict(type='CocoMetric', ann_file=str(data / 'train.json'), metric='bbox'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
        val_cfg=dict(type='ValLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', save_optimizer=False)
        ),
        log_processor=dict(type='LogProcessor', window_size=1),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),
        randomness=dict(seed=0),
    )
    cfg.update(
        test_dataloader=cfg['val_dataloader'], test_evaluator=cfg['val_evaluator'], test_cfg=dict(type='TestLoop')
    )
    cfg = Config(cfg)
    cfg.merge_from_dict(copy.deepcopy(changes))
    return cfg


BY_ITERATION = {
    'train_cfg': dict(type='IterBasedTrainLoop', _delete_=True, max_iters=6, val_interval=2),
    'train_dataloader.sampler.type': 'InfiniteSampler',
}


def without_validation(cfg):
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[name] = None
    return cfg


def train(cfg, work_dir, *flags, name='config.py'):
    """Train by tools/train.py in this process."""
    work_dir.mkdir(exist_ok=True)
    path = work_dir.parent / f'{work_dir.name}_{name}'
    cfg.dump(path)
    call_tool('train.py', path, '--work-dir', work_dir, *flags)
    return work_dir


def warnings_of(work_dir):
    return [line for log in logs(work_dir) for line in log.splitlines() if ' - WARNING - ' in line]


def validations(work_dir):
    """What tools/show_run.py puts on its axis: the unit, and place and seconds of each validation, which tell it."""
    run = show_run.read_run(work_dir)
    return run.unit, [(f'{place:g}', line['time']) for place, line in run.val.items()]


def seconds(work_dir):
    return [line['time'] for line in scalars(work_dir, 'coco/bbox_mAP')]
