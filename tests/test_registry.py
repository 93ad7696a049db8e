"""The three ways to name our classes in a config, each in a process of its own with mmdet's own head classes."""

import subprocess
import sys

import pytest

BUILD = """
import warnings
warnings.filterwarnings('ignore')
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

init_default_scope('mmdet')
cfg = Config.fromfile({path!r})
head = MODELS.build(cfg.model.bbox_head, default_args=dict(train_cfg=cfg.model.train_cfg))
for part in (head, head.loss_cls, head.loss_dfl, head.assigner):
    print(type(part).__module__.split('.')[0], type(part).__name__)
"""

CONFIG = """
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
{imports}
model = dict(
    bbox_head=dict(loss_cls=dict(type='{scope}QualityFocalLoss'), loss_dfl=dict(type='{scope}DistributionFocalLoss')),
    train_cfg=dict(
        assigner=dict(_delete_=True, type='{assigner_scope}{assigner}', match_costs=dict(type='IoUCost'))
    ),
)
"""


def build_in_a_new_process(tmp_path, **kwargs):
    kwargs = {'imports': '', 'scope': '', 'assigner_scope': '', 'assigner': 'HungarianAssigner', **kwargs}
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(**kwargs))
    run = subprocess.run(
        [sys.executable, '-c', BUILD.format(path=str(path))], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith(('mmdet ', 'uotod_mmdet '))]
    return lines, run.stdout + run.stderr


OURS = ['mmdet GFLHead', 'uotod_mmdet QualityFocalLoss', 'uotod_mmdet DistributionFocalLoss']


def test_the_prefix_alone_is_enough(tmp_path):
    lines, _ = build_in_a_new_process(tmp_path, scope='uotod_mmdet.', assigner_scope='uotod_mmdet.')
    assert lines == [*OURS, 'uotod_mmdet HungarianAssigner']


def test_custom_imports_register_what_does_not_collide(tmp_path):
    imports = "custom_imports = dict(imports=['uotod_mmdet'])"
    lines, _ = build_in_a_new_process(tmp_path, imports=imports, assigner='UnbalancedSinkhornAssigner')
    assert lines == [
        'mmdet GFLHead',
        'mmdet QualityFocalLoss',
        'mmdet DistributionFocalLoss',
        'uotod_mmdet UnbalancedSinkhornAssigner',
    ]


def test_override_takes_mmdets_names_and_says_so_once(tmp_path):
    imports = "custom_imports = dict(imports=['uotod_mmdet.override'])"
    lines, output = build_in_a_new_process(tmp_path, imports=imports)
    assert lines == ['uotod_mmdet GFLHead', *OURS[1:], 'uotod_mmdet HungarianAssigner']
    assert output.count('these names now mean uotod_mmdet classes') == 1
    assert all(name in output for name in ('GFLHead', 'QualityFocalLoss', 'HungarianAssigner'))


def test_importing_twice_does_not_collide():
    from mmdet.registry import TASK_UTILS

    from uotod_mmdet.registry import share_with_mmdet

    assert share_with_mmdet() == []
    assert TASK_UTILS.get('HungarianAssigner').__module__.startswith('mmdet.')


def test_names_of_mmdet_are_found_through_our_scope():
    from mmdet.registry import MODELS

    assert MODELS.get('uotod_mmdet.GIoULoss') is MODELS.get('GIoULoss')


@pytest.mark.parametrize('name', ['QualityFocalLoss', 'DistributionFocalLoss', 'VarifocalLoss'])
def test_losses_are_subclasses_of_mmdets(name):
    from mmdet.registry import MODELS

    assert issubclass(MODELS.get(f'uotod_mmdet.{name}'), MODELS.get(name))
    assert MODELS.get(f'uotod_mmdet.{name}') is not MODELS.get(name)
