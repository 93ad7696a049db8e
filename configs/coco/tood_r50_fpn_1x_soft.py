# TOOD R50 trained on the whole plan of unbalanced transport; stock is mmdet::tood/tood_r50_fpn_1x_coco.py. After the
# initial epochs, in which ATSSAssigner is kept, the plan is that of task alignment: each ground truth holds what mmdet
# gives it, 13 predictions' worth, inside its box.
_base_ = 'mmdet::tood/tood_r50_fpn_1x_coco.py'
from uotod_mmdet.assigners import preset  # noqa: E402

model = dict(
    bbox_head=dict(type='uotod_mmdet.TOODHead'),
    train_cfg=dict(assigner=dict(_delete_=True, **preset('alignment_soft'))),
)
