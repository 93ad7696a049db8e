# Mask2Former R50 trained on the whole plan of balanced transport with its own costs of masks and classes, which hardens
# over training (see color_boxes/dino_tiny_soft.py).
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

model = dict(
    panoptic_head=dict(type='uotod_mmdet.Mask2FormerHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner', reg=0.01)),
)
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.01, stop=0.001, mode='exponential'),
]
