"""mmdet's MaskFormer and Mask2Former, cut down to models that step in a fraction of a second, and data for them."""

import copy
import functools

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from tiny_models import NUM_CLASSES, images_and_samples, shrink_backbone

CONFIGS = {
    'MaskFormerHead': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'Mask2FormerHead': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
NUM_QUERIES = 12
SIZE, STRIDE = 64, 4  # of the images, and of the masks that the heads predict
MASK_COSTS = [
    dict(type='ClassificationCost', weight=2.0),
    dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
]


@functools.lru_cache
def full_config(head: str):
    """mmdet's model config."""
    return get_config(CONFIGS[head]).model


def tiny_config(head: str, ours: bool = True, assigner=None, **changes):
    """Model config of mmdet, with its own or another assigner and with our head or mmdet's; 32 channels, 2 layers."""
    model = copy.deepcopy(full_config(head))
    init_default_scope('mmdet')
    model.neck = dict(type='none', in_channels=[8, 16, 32, 64])  # shrink_backbone expects one
    shrink_backbone(model)
    model.pop('neck')
    part = model.panoptic_head
    part.update(in_channels=[8, 16, 32, 64], feat_channels=32, out_channels=32, num_queries=NUM_QUERIES)
    part.update(num_things_classes=NUM_CLASSES, num_stuff_classes=0)
    part.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    model.panoptic_fusion_head.update(num_things_classes=NUM_CLASSES, num_stuff_classes=0)
    narrow(part)
    part.pixel_decoder.encoder.num_layers, part.transformer_decoder.num_layers = 1, 2
    model.train_cfg.num_points = 96
    if assigner is not None:
        model.train_cfg.assigner = ConfigDict(assigner)
    part.type = 'uotod_mmdet.' * ours + head
    for name, value in changes.items():  # ConfigDict.update would merge dicts
        part[name] = ConfigDict(value) if isinstance(value, dict) else value
    return model


def narrow(part) -> None:
    """32 channels, no dropout, in place."""
    for name, value in part.items():
        if isinstance(value, dict):
            narrow(value)
        elif name == 'embed_dims':
            part[name] = 32
        elif name == 'feedforward_channels':
            part[name] = 64
        elif name == 'num_feats':
            part[name] = 16
        elif name in ('dropout', 'ffn_drop', 'attn_drop', 'proj_drop'):
            part[name] = 0.0


def head_config(head: str, ours: bool = True, assigner=None, **changes):
    """Config of the head alone, with its train_cfg."""
    model = tiny_config(head, ours, assigner, **changes)
    model.panoptic_head.update(train_cfg=model.train_cfg, test_cfg=model.test_cfg)
    return model.panoptic_head


def outputs(layers: int = 3, images: int = 2, seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    """Random scores (L, B, N, C + 1) and masks (L, B, N, h, w), leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = layers, images, NUM_QUERIES
    scores = torch.randn(*shape, NUM_CLASSES + 1, generator=generator, dtype=torch.float64)
    masks = 2 * torch.randn(*shape, SIZE // STRIDE, SIZE // STRIDE, generator=generator, dtype=torch.float64)
    return [scores.to(dtype).requires_grad_(), masks.to(dtype).requires_grad_()]


def ground_truths(counts=(4, 2), seed: int = 0) -> tuple[list[InstanceData], list[dict]]:
    """Labels and masks, of filled boxes, of each image."""
    rng, gts, metas = np.random.default_rng(seed), [], []
    for count in counts:
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
        for mask in masks:
            (x, y), (w, h) = rng.integers(0, SIZE // 2, 2), rng.integers(8, SIZE // 2, 2)
            mask[y : y + h, x : x + w] = 1
        gts.append(InstanceData(labels=torch.tensor(rng.integers(0, NUM_CLASSES, count)), masks=masks))
        metas.append(dict(img_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE)))
    return gts, metas


def batch_with_masks(num_boxes=(3, 2), size: int = SIZE) -> dict:
    """A training batch of images with filled boxes, and their masks."""
    batch = images_and_samples(num_boxes, size)
    for sample in batch['data_samples']:
        gts = sample.gt_instances
        masks = np.zeros((len(gts), size, size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, gts.bboxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        gts.masks = BitmapMasks(masks, size, size)
    return batch
