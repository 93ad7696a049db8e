# dense_sinkhorn.py for data in which some objects are far smaller than the smallest anchors, as in COCO and BCCD: -log
# IoU keeps them on the finest level, where GIoU hardly tells one level from the next.
# The numbers are in uotod_mmdet/assigners/presets.py. Without this file: type='uotod_mmdet.dense_sinkhorn_small'.
_base_ = []  # or mmengine takes a file that imports for one of its lazy configs
from uotod_mmdet.assigners import preset  # noqa: E402

dense_sinkhorn_small = dict(_delete_=True, **preset('dense_sinkhorn_small'))
