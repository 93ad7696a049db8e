"""mmdet's own configs under uotod_mmdet.override: the losses of mmdet, or one sentence that refuses the model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))

import check_override  # noqa: E402

pytestmark = pytest.mark.slow

EQUAL = [
    'atss/atss_r50_fpn_1x_coco.py',
    'ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
    'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'detr/detr_r50_8xb2-150e_coco.py',
    'gfl/gfl_r50_fpn_1x_coco.py',
    'grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'retinanet/retinanet_r50_fpn_1x_coco.py',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'vfnet/vfnet_r50_fpn_1x_coco.py',
]
REFUSED = ['ghm/retinanet_r50_fpn_ghm-1x_coco.py']


@pytest.fixture(scope='module')
def outcomes():
    return {outcome.config: outcome for outcome in check_override.check([*EQUAL, *REFUSED])}


@pytest.mark.parametrize('config', EQUAL)
def test_a_training_step_under_the_override_has_mmdets_losses(config, outcomes):
    assert outcomes[config].verdict == 'equal', outcomes[config]


@pytest.mark.parametrize('config', REFUSED)
def test_a_loss_that_cannot_read_a_plan_is_refused_before_training(config, outcomes):
    assert outcomes[config].verdict in ('equal', 'refused'), outcomes[config]


LOSSES = dict(losses=dict(loss_cls=1.0, loss_bbox=2.0))


@pytest.mark.parametrize(
    'ours, verdict',
    [
        (dict(losses=dict(loss_cls=1.0, loss_bbox=2.0 + 1e-6)), 'equal'),
        (dict(losses=dict(loss_cls=1.0, loss_bbox=2.001)), 'differs'),
        (dict(losses=dict(loss_cls=1.0, loss_bbox=float('nan'))), 'differs'),
        (dict(losses=dict(loss_cls=1.0)), 'differs'),
        (dict(stage='build', error='ValueError', message='RetinaHead cannot use GHMC.', place=''), 'refused'),
        (dict(stage='build', error='TypeError', message='missing argument', place=''), 'crash'),
        (dict(stage='step', error='ValueError', message='too late', place=''), 'crash'),
    ],
)
def test_only_equal_losses_and_refusals_at_build_are_good(ours, verdict):
    assert check_override.compare('config', LOSSES, ours).verdict == verdict


def test_the_sweep_covers_the_configs_that_hold_our_names():
    names = check_override.find_configs('retinanet_r50_fpn_1x|faster-rcnn_r50_fpn_1x|tood_r50_fpn_1x')
    assert 'retinanet/retinanet_r50_fpn_1x_coco.py' in names and 'tood/tood_r50_fpn_1x_coco.py' in names
    assert not any('faster-rcnn_r50_fpn_1x' in name for name in names)
