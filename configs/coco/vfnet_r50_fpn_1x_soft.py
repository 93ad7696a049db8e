# VFNet R50 trained on the whole plan of unbalanced transport.
_base_ = './vfnet_r50_fpn_1x_sinkhorn.py'

model = dict(bbox_head=dict(type='uotod_mmdet.VFNetHead'))
