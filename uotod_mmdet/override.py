"""Let our classes take mmdet's names: ``custom_imports = dict(imports=['uotod_mmdet.override'])``.

An existing config then trains with our losses, assigners and heads with no other edit.
"""

from mmengine.logging import print_log

from uotod_mmdet.registry import share_with_mmdet

_replaced = share_with_mmdet(replace=True)
if _replaced:
    print_log(f'uotod_mmdet.override: these names now mean uotod_mmdet classes: {", ".join(_replaced)}', 'current')
