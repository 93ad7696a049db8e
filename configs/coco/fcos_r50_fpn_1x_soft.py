# FCOS R50 trained on the whole plan of unbalanced transport; stock is the first config below, which has no assigner.
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    '../_base_/assigners/point_soft.py',
]

model = dict(bbox_head=dict(type='uotod_mmdet.FCOSHead'), train_cfg=dict(assigner={{_base_.point_soft}}))
