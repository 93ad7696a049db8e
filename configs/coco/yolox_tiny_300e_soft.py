# YOLOX-tiny trained on the whole plan of unbalanced transport; stock is mmdet::yolox/yolox_tiny_8xb8-300e_coco.py.
_base_ = ['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '../_base_/assigners/point_soft.py']

model = dict(bbox_head=dict(type='uotod_mmdet.YOLOXHead'), train_cfg=dict(assigner={{_base_.point_soft}}))
