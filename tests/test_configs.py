"""Every config of ours builds, and does a training step: the full-size ones with full-size models on small images.

DDQ DETR and Grounding DINO get two layers and few queries. Grounding DINO also gets a stand-in for BERT, whose weights
need a network: one token for a word, random embeddings.
"""

import copy
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from tiny_masks import batch_with_masks
from tiny_models import build, images_and_samples, use_small_language_model

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
FULL_SIZE = sorted(path.name for path in (CONFIGS / 'coco').glob('*.py'))
SIZES = {'ssd300': 300, 'dino-4scale': 256}  # others 128
SHRUNK = 'ddq-detr', 'grounding-dino'
COLOR_BOXES = sorted(path.name for path in (CONFIGS / 'color_boxes').glob('*.py'))


def without_pretrained_weights(model: dict) -> dict:
    """The config with nothing to download."""
    for part in model.values():
        if isinstance(part, dict):
            if part.get('init_cfg') and part['init_cfg'].get('type') == 'Pretrained':
                part['init_cfg'] = None
            without_pretrained_weights(part)
    return model


def head_of(model: dict) -> str:
    """Name of the head in the config of a model."""
    return 'bbox_head' if 'bbox_head' in model else 'panoptic_head'


def step(cfg: Config, batch: dict, steps: int = 1) -> dict:
    """Steps of the config's optimizer, as the Runner does them."""
    detector = build(without_pretrained_weights(cfg.model))
    optim_wrapper = build_optim_wrapper(detector, cfg.optim_wrapper)
    head = detector.get_submodule(head_of(cfg.model))
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    for _ in range(steps):
        losses = detector.train_step(copy.deepcopy(batch), optim_wrapper)
    changed = [name for name, p in head.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) >= len(before) / 2
    return losses


@pytest.mark.parametrize('name', FULL_SIZE)
def test_full_size_config_does_a_training_step(name):
    hub = MessageHub.get_current_instance()  # as a Runner has it: TOOD reads the epoch, YOLOX the iteration
    hub.update_info('epoch', 10), hub.update_info('iter', 0)
    cfg = Config.fromfile(CONFIGS / 'coco' / name)
    assert cfg.model.train_cfg.assigner.type.startswith('uotod_mmdet.')
    size, steps = SIZES.get(name.split('_')[0], 128), 1
    if head_of(cfg.model) == 'panoptic_head':
        cfg.model.data_preprocessor.batch_augments = None  # which pad each image to 1024 x 1024
        cfg.model.train_cfg.num_points = 512
        batch = batch_with_masks((3, 1), size)
    else:
        batch = images_and_samples((3, 1), size)
    if name.startswith(SHRUNK):
        cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 2
        cfg.model.num_queries = 50
    if 'language_model' in cfg.model:
        text = use_small_language_model(cfg.model)
        for sample in batch['data_samples']:
            sample.set_metainfo(text)
        steps = 2  # the last layers of its box branches begin with 0, so that those before have no gradient at first
    losses = step(cfg, batch, steps)
    assert len(losses) > 2
    assert all(torch.isfinite(value).all() and value >= 0 for value in losses.values())


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('color_boxes'))


@pytest.mark.parametrize('name', COLOR_BOXES)
def test_color_boxes_config_does_a_training_step_on_its_data(name, data_root):
    cfg = Config.fromfile(CONFIGS / 'color_boxes' / name)
    cfg.train_dataloader.dataset.update(data_root=data_root, size='mini')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    items = [dataset[index] for index in range(4)]
    batch = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    assert all(len(sample.gt_instances) > 0 for sample in batch['data_samples'])
    losses = step(cfg, batch)
    assert all(torch.isfinite(value).all() and value >= 0 for value in losses.values())


def test_each_config_of_ours_has_its_stock_baseline():
    for path in CONFIGS.glob('[a-z]*/*_tiny_*.py'):
        family, assigner = path.stem.split('_tiny_')
        if assigner.startswith(('sinkhorn', 'soft')):
            others = {other.stem.split('_tiny_')[1] for other in path.parent.glob(f'{family}_tiny_*.py')}
            assert any(not other.startswith(('sinkhorn', 'soft')) for other in others), path


@pytest.mark.parametrize(
    'path', [*CONFIGS.glob('coco/*_soft*.py'), *CONFIGS.glob('color_boxes/*_soft*.py')], ids=lambda path: path.name
)
def test_soft_configs_train_our_heads_on_a_soft_plan(path):
    cfg = Config.fromfile(path)
    assert cfg.model[head_of(cfg.model)].type.startswith('uotod_mmdet.')
    assert cfg.model.train_cfg.assigner.type.endswith('SinkhornAssigner')
