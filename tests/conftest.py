"""Settings of all tests."""

import logging

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import uotod_mmdet  # noqa: F401  (registers our classes)


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
