# SSD on the backbone of gfl_tiny.py, for 256x256 images, with mmdet's MaxIoUAssigner.
_base_ = './gfl_tiny.py'

model = dict(
    type='SingleStageDetector',
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(
        _delete_=True,
        type='SSDNeck',
        in_channels=(32, 64, 128),
        out_channels=(32, 64, 128, 64, 64),
        level_strides=(2, 2),
        level_paddings=(1, 1),
        l2_norm_scale=None,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        _delete_=True,
        # mmdet 3.3's own cannot be evaluated; with an mmdet assigner the losses are the same.
        type='uotod_mmdet.SSDHead',
        num_classes=20,
        in_channels=(32, 64, 128, 64, 64),
        stacked_convs=1,
        feat_channels=64,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=256,
            strides=[8, 16, 32, 64, 128],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2]],
            min_sizes=[14, 26, 48, 72, 100],
            max_sizes=[26, 48, 72, 100, 140],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    ),
    train_cfg=dict(
        assigner=dict(
            _delete_=True,
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        neg_pos_ratio=3,
    ),
    test_cfg=dict(score_thr=0.02, nms=dict(iou_threshold=0.45)),
)
