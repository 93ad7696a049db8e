# DETR with two encoder and three decoder layers on the backbone of gfl_tiny.py, features of stride 16.
_base_ = './gfl_tiny.py'

attention = dict(embed_dims=64, num_heads=4, dropout=0.0, batch_first=True)
feed_forward = dict(
    embed_dims=64, feedforward_channels=256, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type='ReLU', inplace=True)
)
model = dict(
    type='DETR',
    num_queries=50,
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
    neck=dict(
        _delete_=True,
        type='ChannelMapper',
        in_channels=[64],
        kernel_size=1,
        out_channels=64,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=32, normalize=True),
    bbox_head=dict(
        _delete_=True,
        type='DETRHead',
        num_classes=20,
        embed_dims=64,
        loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, use_sigmoid=False, loss_weight=1.0, class_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        _delete_=True,
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=1.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        ),
    ),
    test_cfg=dict(_delete_=True, max_per_img=50),
)
