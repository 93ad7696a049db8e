"""The ways to name our classes in a config; those that change mmdet's registries in processes of their own."""

import json
import subprocess
import sys

import pytest
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmengine.registry import init_default_scope

from uotod_mmdet.registry import MODELS, TASK_UTILS

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


@pytest.mark.slow
def test_the_prefix_alone_is_enough(tmp_path):
    lines, _ = build_in_a_new_process(tmp_path, scope='uotod_mmdet.', assigner_scope='uotod_mmdet.')
    assert lines == [*OURS, 'uotod_mmdet HungarianAssigner']


@pytest.mark.slow
def test_custom_imports_register_what_does_not_collide(tmp_path):
    imports = "custom_imports = dict(imports=['uotod_mmdet'])"
    lines, _ = build_in_a_new_process(tmp_path, imports=imports, assigner='UnbalancedSinkhornAssigner')
    assert lines == [
        'mmdet GFLHead',
        'mmdet QualityFocalLoss',
        'mmdet DistributionFocalLoss',
        'uotod_mmdet UnbalancedSinkhornAssigner',
    ]


@pytest.mark.slow
def test_override_takes_mmdets_names_and_says_so_once(tmp_path):
    imports = "custom_imports = dict(imports=['uotod_mmdet.override'])"
    lines, output = build_in_a_new_process(tmp_path, imports=imports)
    assert lines == ['uotod_mmdet GFLHead', *OURS[1:], 'uotod_mmdet HungarianAssigner']
    assert output.count('these names now mean uotod_mmdet classes') == 1
    assert all(name in output for name in ('GFLHead', 'QualityFocalLoss', 'HungarianAssigner'))


def test_importing_twice_does_not_collide():
    from uotod_mmdet.registry import share_with_mmdet

    assert share_with_mmdet() == []
    assert MMDET_TASK_UTILS.get('HungarianAssigner').__module__.startswith('mmdet.')


@pytest.mark.parametrize('name', ['CornerHead', 'GIoULoss', 'FocalLoss', 'ResNet'])
@pytest.mark.parametrize('scope', ['mmdet', 'uotod_mmdet', 'mmengine'])
def test_our_prefix_means_ours_and_says_how_to_have_mmdets(scope, name):
    init_default_scope(scope)
    for registry in (MMDET_MODELS, MODELS, ROOT_MODELS):
        with pytest.raises(KeyError) as caught:
            registry.build(dict(type=f'uotod_mmdet.{name}'))
        message = str(caught.value)
        assert f"mmdet's is type='mmdet.{name}'" in message
        assert all(ours in message for ours in ('GFLHead', 'DetectionLoss', 'QualityFocalLoss'))
        assert registry.get(f'mmdet.{name}').__module__.startswith('mmdet.')


def test_a_name_that_nobody_has_is_not_said_to_be_mmdets():
    with pytest.raises(KeyError) as caught:
        MMDET_MODELS.build(dict(type='uotod_mmdet.QualityFocalLos'))
    assert "did you mean 'QualityFocalLoss'?" in str(caught.value) and "mmdet's is" not in str(caught.value)


PROJECT = """
from mmengine.registry import MODELS as ROOT_MODELS, TASK_UTILS as ROOT_TASK_UTILS, Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='someproject')
TASK_UTILS = Registry('task util', parent=ROOT_TASK_UTILS, scope='someproject')


@TASK_UTILS.register_module()
class NoCost:
    def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        return 0 * (pred_instances.bboxes.sum(1)[:, None] + gt_instances.bboxes.sum(1))
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project with registries beside mmdet's, as mmyolo's and mmrotate's are."""
    folder = tmp_path_factory.mktemp('project')
    (folder / 'someproject').mkdir()
    (folder / 'someproject' / '__init__.py').touch()
    (folder / 'someproject' / 'registry.py').write_text(PROJECT)
    sys.path.insert(0, str(folder))
    import someproject.registry

    yield someproject.registry
    sys.path.remove(str(folder))


@pytest.mark.parametrize('scope', ['mmdet', 'someproject', 'mmengine', 'uotod_mmdet', None])
def test_our_prefix_works_from_every_default_scope(scope, project):
    if scope is None:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()
    else:
        init_default_scope(scope)
    for models, task_utils in (
        (project.MODELS, project.TASK_UTILS),
        (ROOT_MODELS, ROOT_TASK_UTILS),
        (MMDET_MODELS, MMDET_TASK_UTILS),
        (MODELS, TASK_UTILS),
    ):
        assert models.build(dict(type='mmdet.QualityFocalLoss')).__module__ == 'mmdet.models.losses.gfocal_loss'
        assert models.build(dict(type='uotod_mmdet.QualityFocalLoss')).__module__.startswith('uotod_mmdet.')
        # Inside our constructors names without prefix are found from every scope, too.
        costs = [dict(type='IoUCost'), dict(type='mmdet.FocalLossCost'), dict(type='uotod_mmdet.LogIoUCost')]
        if scope == 'someproject':
            costs.append(dict(type='NoCost'))
        assigner = task_utils.build(dict(type='uotod_mmdet.HungarianAssigner', match_costs=costs))
        names = ['IoUCost', 'FocalLossCost', 'LogIoUCost', 'NoCost']
        assert [type(cost).__name__ for cost in assigner.match_costs] == names[: len(costs)]
        loss = models.build(
            dict(
                type='uotod_mmdet.DetectionLoss',
                loss_cls=dict(type='FocalLoss'),
                loss_bbox=[dict(type='GIoULoss'), dict(type='mmdet.L1Loss')],
                assigner=dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='IoUCost')),
                bg_class_position='none',
            )
        )
        assert type(loss.loss_cls) is MMDET_MODELS.get('FocalLoss')


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine', 'uotod_mmdet'])
def test_the_whole_path_of_a_class_builds_it_from_every_scope(scope, tmp_path):
    """As mmengine writes a config whose types are classes."""
    from uotod_mmdet.losses import QualityFocalLoss

    init_default_scope(scope)
    path = 'uotod_mmdet.losses.quality_focal_loss.QualityFocalLoss'
    for registry in (ROOT_MODELS, MMDET_MODELS, MODELS):
        assert type(registry.build(dict(type=path, beta=1.5))) is QualityFocalLoss
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\n'
        'from uotod_mmdet.losses.quality_focal_loss import QualityFocalLoss\n'
        'loss = dict(type=QualityFocalLoss, beta=1.5)\n'
    )
    Config.fromfile(tmp_path / 'lazy.py', lazy_import=True).dump(tmp_path / 'dumped.py')
    loss = ROOT_MODELS.build(Config.fromfile(tmp_path / 'dumped.py').loss)
    assert type(loss) is QualityFocalLoss and loss.beta == 1.5
    with pytest.raises(KeyError, match='uotod_mmdet.losses'):
        MMDET_MODELS.build(dict(type='uotod_mmdet.losses'))  # a module


OVERRIDE = """
import json, sys, warnings
warnings.filterwarnings('ignore')
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

init_default_scope('mmdet')
hungarian = dict(type='HungarianAssigner', match_costs=dict(type='IoUCost'))
model = get_config('mmdet::vfnet/vfnet_r50_fpn_1x_coco.py').model
vfnet = dict(**model.bbox_head, train_cfg=model.train_cfg, test_cfg=model.test_cfg)
vfnet.update(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1)
retina = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
sampled = dict(**retina.bbox_head, test_cfg=retina.test_cfg, train_cfg=dict(**retina.train_cfg))
sampled.update(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1)
sampled['train_cfg'].update(sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False))


def build(config):
    torch.manual_seed(0)
    return MODELS.build(config)


def module(part):
    return type(part).__module__.split('.')[0]


def parameters(head):
    return torch.cat([p.detach().flatten() for p in head.parameters()])


without = {name: build(config) for name, config in dict(fcos=dict(vfnet, use_atss=False), sampled=sampled).items()}
earlier = build(vfnet)

path = sys.argv[1] + '/config.py'
open(path, 'w').write("custom_imports = dict(imports=['uotod_mmdet.override'])")
Config.fromfile(path)
Config.fromfile(path)
import importlib
import uotod_mmdet.override
importlib.reload(uotod_mmdet.override)  # asked for once more

found = dict(earlier=module(earlier), later=module(build(vfnet)), assigner=module(TASK_UTILS.build(hungarian)))
for name, config in dict(fcos=dict(vfnet, use_atss=False), sampled=sampled).items():
    head = build(config)
    found[name] = module(head), torch.equal(parameters(head), parameters(without[name]))
errors = {}
for name, config in dict(
    prefixed=dict(vfnet, type='uotod_mmdet.VFNetHead', use_atss=False),
    own=dict(vfnet, min_weight=-1),
    misspelt=dict(vfnet, num_clases=3),
    neither=dict(sampled, num_classes=0),
).items():
    try:
        errors[name] = module(build(config))
    except Exception as error:
        errors[name] = f'{type(error).__name__}: {error}'
kind = MODELS.get('VFNetHead')


class Mine(kind):
    pass


vfnet.pop('type')
found['subclass'] = [module(Mine(**vfnet)) , isinstance(Mine(**vfnet), MODELS.get('uotod_mmdet.VFNetHead'))]
found['exact'] = type(kind(**vfnet)) is MODELS.get('uotod_mmdet.VFNetHead')
print('JSON' + json.dumps([found, errors]))
"""


@pytest.mark.slow
def test_override_leaves_to_mmdet_what_ours_cannot_do_and_nothing_else(tmp_path):
    run = subprocess.run([sys.executable, '-c', OVERRIDE, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    found, errors = json.loads(run.stdout.split('JSON')[1])
    assert found['earlier'] == 'mmdet' and found['later'] == found['assigner'] == 'uotod_mmdet'
    # mmdet's class, initialised as without the override, and a word about the reason
    assert found['fcos'] == found['sampled'] == ['mmdet', True]
    output = run.stdout + run.stderr
    assert output.count("built mmdet's VFNetHead") == 1 and 'use_atss=False' in output
    assert output.count("built mmdet's RetinaHead") == 1 and 'RandomSampler' in output
    assert output.count('these names now mean uotod_mmdet classes') == 1
    # Our prefix means ours; what mmdet's does not take either is answered by ours.
    assert errors['prefixed'].startswith('ValueError: VFNetHead: use_atss=False')
    assert errors['own'].startswith('ValueError: ') and 'min_weight' in errors['own']
    assert errors['misspelt'].startswith(
        "TypeError: VFNetHead has no argument 'num_clases'; did you mean 'num_classes'"
    )
    assert 'RandomSampler' not in errors['neither'] and 'num_classes' in errors['neither']
    assert found['subclass'] == ['__main__', True] and found['exact']


@pytest.mark.parametrize('name', ['QualityFocalLoss', 'DistributionFocalLoss', 'VarifocalLoss'])
def test_losses_are_subclasses_of_mmdets(name):
    assert issubclass(MMDET_MODELS.get(f'uotod_mmdet.{name}'), MMDET_MODELS.get(name))
    assert MMDET_MODELS.get(f'uotod_mmdet.{name}') is not MMDET_MODELS.get(name)
