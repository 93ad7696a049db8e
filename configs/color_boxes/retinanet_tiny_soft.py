# Tiny RetinaNet trained on the whole plan of unbalanced transport.
_base_ = './retinanet_tiny_sinkhorn.py'

model = dict(bbox_head=dict(type='uotod_mmdet.RetinaHead'))
