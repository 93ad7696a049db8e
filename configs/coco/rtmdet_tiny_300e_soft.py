# RTMDet-tiny trained on the whole plan of unbalanced transport; stock is mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py.
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../_base_/assigners/point_soft.py']

model = dict(bbox_head=dict(type='uotod_mmdet.RTMDetSepBNHead'), train_cfg=dict(assigner={{_base_.point_soft}}))
