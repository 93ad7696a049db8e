# Unbalanced transport for heads that regress from inside the box (GFL, VFNet, ATSS): overlap, centre distance, and a
# large constant outside the box. Replaces the assigner of a config by `assigner={{_base_.dense_sinkhorn}}`.
# The numbers are in uotod_mmdet/assigners/presets.py. Without this file: type='uotod_mmdet.dense_sinkhorn'.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
from uotod_mmdet.assigners import preset  # noqa: E402

dense_sinkhorn = dict(_delete_=True, **preset('dense_sinkhorn'))
