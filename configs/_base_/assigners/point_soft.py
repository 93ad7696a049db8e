# Unbalanced transport for soft training of heads of points (RTMDet, YOLOX, FCOS): the costs that RTMDet's
# DynamicSoftLabelAssigner minimises, with the whole plan in place of its best k. Each ground truth gets five
# predictions' worth, as in dense_soft.py.
# The numbers are in uotod_mmdet/assigners/presets.py. Without this file: type='uotod_mmdet.point_soft'.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
from uotod_mmdet.assigners import preset  # noqa: E402

point_soft = dict(_delete_=True, **preset('point_soft'))
