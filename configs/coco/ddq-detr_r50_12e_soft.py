# DDQ DETR R50 trained on the whole plan of balanced transport with its own costs, which hardens over training
# (see color_boxes/dino_tiny_soft.py). The auxiliary branch of dense queries keeps mmdet's TopkHungarianAssigner.
_base_ = 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'

model = dict(
    bbox_head=dict(type='uotod_mmdet.DDQDETRHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner', reg=0.01)),
)
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.01, stop=0.001, mode='exponential'),
]
