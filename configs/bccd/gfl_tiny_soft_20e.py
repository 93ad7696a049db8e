# Tiny GFL on BCCD, trained on the whole plan of unbalanced transport.
_base_ = './gfl_tiny_sinkhorn_20e.py'

model = dict(bbox_head=dict(type='uotod_mmdet.GFLHead'))
