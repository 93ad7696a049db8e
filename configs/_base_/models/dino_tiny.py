# DINO: deformable_detr_tiny.py with denoising queries.
_base_ = './deformable_detr_tiny.py'

model = dict(
    type='DINO',
    bbox_head=dict(type='DINOHead'),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=30),
    ),
)
