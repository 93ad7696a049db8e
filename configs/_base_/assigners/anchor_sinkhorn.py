# Unbalanced transport for heads that regress from anchors (RetinaNet, SSD): each anchor to its best ground truth, or to
# the background below IoU 0.5. Replaces the assigner of a config by `assigner={{_base_.anchor_sinkhorn}}`.
# The numbers are in uotod_mmdet/assigners/presets.py. Without this file: type='uotod_mmdet.anchor_sinkhorn'.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
from uotod_mmdet.assigners import preset  # noqa: E402

anchor_sinkhorn = dict(_delete_=True, **preset('anchor_sinkhorn'))
