"""Settings of all tests."""

import logging
import os

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import uotod_mmdet  # noqa: F401  (registers our classes)

# `make test VENV=... PYTHON=...` leaves its variables in the environment. They are not for what the tests start: make,
# setup_env.py, dist_train.sh.
for name in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'ARGS', 'LINEAGE', 'PYTHON', 'TORCH', 'VENV'):
    os.environ.pop(name, None)

# The decoder of Grounding DINO in onedl-mmdetection 3.5.1 takes 2 * embed_dims features, its parent passes 4 *
# embed_dims: no training step works, with mmdet's own classes either.
BROKEN_IN_FORK = (
    'test_full_size_config_does_a_training_step[grounding-dino',
    'test_a_training_step_under_the_override_has_mmdets_losses[grounding_dino',
    'test_the_detector_overfits_two_images_on_a_soft_plan[GroundingDINOHead',
    'test_each_coco_config_is_shown[grounding-dino',
)


def pytest_collection_modifyitems(items):
    if mmdet.__version__ == '3.5.1':
        broken = pytest.mark.xfail(reason='Grounding DINO of onedl-mmdetection 3.5.1 does no training step')
        for item in items:
            if item.name.startswith(BROKEN_IN_FORK):
                item.add_marker(broken)


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Names without prefix are mmdet's, as in a Runner, whatever ran before."""
    init_default_scope('mmdet')
    logger = MMLogger.get_current_instance()
    if logger.instance_name == 'mmengine':  # init_weights logs every parameter there
        logger.setLevel(logging.WARNING)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A folder with six images of 64 x 64 and their annotations."""
    from tiny_runs import write_annotations

    root = tmp_path_factory.mktemp('data')
    write_annotations(root, 'train.json')
    for index in range(6):
        cv2.imwrite(str(root / f'{index}.png'), np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8))
    return root
