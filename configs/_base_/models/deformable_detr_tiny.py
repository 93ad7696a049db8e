# Two-stage Deformable DETR with one encoder and one decoder layer on the backbone of gfl_tiny.py, one level of stride
# 16, about 1.6 M parameters. mmdet's fixes 128 features for each coordinate, so it works only with 256 channels.
_base_ = './gfl_tiny.py'

deformable_attention = dict(embed_dims=256, num_heads=8, num_levels=1, num_points=4, dropout=0.0)
feed_forward = dict(embed_dims=256, feedforward_channels=256, ffn_drop=0.0)
model = dict(
    type='DeformableDETR',
    num_queries=40,
    num_feature_levels=1,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
    neck=dict(
        _delete_=True,
        type='ChannelMapper',
        in_channels=[64],
        kernel_size=1,
        out_channels=256,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=1,
    ),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=feed_forward)),
    decoder=dict(
        num_layers=1,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
            cross_attn_cfg=deformable_attention,
            ffn_cfg=feed_forward,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=128, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        _delete_=True,
        type='DeformableDETRHead',
        num_classes=20,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        _delete_=True,
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        ),
    ),
    test_cfg=dict(_delete_=True, max_per_img=40),
)
