# Stock tiny DINO, the baseline of dino_tiny_soft.py: Deformable DETR with denoising queries and a learning rate that
# falls. It learns from scratch in minutes, as plain DETR does not.
_base_ = './deformable_detr_tiny_hungarian.py'

model = dict(
    type='DINO',
    bbox_head=dict(type='DINOHead'),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=30),
    ),
)
max_epochs = 8
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        convert_to_iter_based=True,
    ),
]
