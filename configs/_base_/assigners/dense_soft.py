# Unbalanced transport for soft training of dense heads (GFL, VFNet, ATSS, RetinaNet): the costs of
# dense_sinkhorn.py and the predicted class; a small reg, for a plan that is soft at its edges only; a large reg_target,
# so that each ground truth gets its five anchors' worth wherever anchors have their centre inside it.
# The numbers are in uotod_mmdet/assigners/presets.py. Without this file: type='uotod_mmdet.dense_soft'.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
from uotod_mmdet.assigners import preset  # noqa: E402

dense_soft = dict(_delete_=True, **preset('dense_soft'))
