# Tiny YOLOX trained on the whole plan of unbalanced transport, with the costs of mmdet's dynamic assigners.
_base_ = ['./yolox_tiny_simota.py', '../_base_/assigners/point_soft.py']

model = dict(bbox_head=dict(type='uotod_mmdet.YOLOXHead'), train_cfg=dict(assigner={{_base_.point_soft}}))
