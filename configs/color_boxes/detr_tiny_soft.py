# Tiny DETR trained on the whole plan of balanced transport.
_base_ = './detr_tiny_sinkhorn.py'

model = dict(bbox_head=dict(type='uotod_mmdet.DETRHead'))
