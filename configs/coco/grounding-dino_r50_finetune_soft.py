# Grounding DINO R50, fine-tuned from mmdet's weights on the whole plan of balanced transport with its own costs, which
# hardens over training (see color_boxes/dino_tiny_soft.py). For a data set of your own, set its metainfo.classes: they
# are the text prompt. mmdet's language model needs `pip install transformers fairscale` and, once, a network.
_base_ = 'mmdet::grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py'

load_from = 'https://download.openmmlab.com/mmdetection/v3.0/grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco/grounding_dino_r50_scratch_1x_coco-fe0002f2.pth'  # noqa: E501
model = dict(
    bbox_head=dict(type='uotod_mmdet.GroundingDINOHead'),
    train_cfg=dict(assigner=dict(type='uotod_mmdet.BalancedSinkhornAssigner', reg=0.01)),
)
custom_hooks = [
    dict(type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.01, stop=0.001, mode='exponential'),
]
