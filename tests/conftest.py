"""Settings of all tests."""

import logging

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
