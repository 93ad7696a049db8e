"""mmdet's own full-size configs, cut down to models that step in a fraction of a second, and data for them."""

import sys
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import uotod_mmdet  # noqa: F401  (registers our classes)

CONFIGS = {
    'GFLHead': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'ATSSHead': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'VFNetHead': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'RetinaHead': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'SSDHead': 'mmdet::ssd/ssd300_coco.py',
    'YOLOXHead': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'RTMDetHead': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'DETRHead': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'DeformableDETRHead': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
}
MORE_QUERY_BASED = {
    'ConditionalDETRHead': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'DABDETRHead': 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'DeformableDETRHead, refine': 'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    'DeformableDETRHead, two-stage': 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'DINOHead': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'DDQDETRHead': 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
}
MORE_POINT = {
    'FCOSHead': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'TOODHead': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
}
DENSE = ('GFLHead', 'ATSSHead', 'VFNetHead', 'RetinaHead', 'SSDHead')  # give the assigner priors only
PREDICTION_AWARE = ('YOLOXHead', 'RTMDetHead')  # priors, boxes and scores
QUERY_BASED = ('DETRHead', 'DeformableDETRHead')  # boxes and scores
NUM_CLASSES = 4


def tiny_config(head: str, assigner: dict) -> dict:
    """Model config of a stock mmdet head with an assigner of ours."""
    model = get_config({**CONFIGS, **MORE_QUERY_BASED, **MORE_POINT}[head]).model
    init_default_scope('mmdet')
    shrink_backbone(model)
    model.bbox_head.num_classes = NUM_CLASSES
    if head in DENSE or head in ('RTMDetHead', *MORE_POINT):
        model.bbox_head.stacked_convs = 1 if head != 'SSDHead' else 0
    if head in ('DINOHead', 'DDQDETRHead'):  # as many as the encoder proposes on a small image
        model.num_queries = 50
    if head == 'FCOSHead':
        model.train_cfg = {}
    model.train_cfg['assigner'] = assigner
    return model


def shrink_backbone(model: dict) -> None:
    """Narrow backbone, neck and transformer in place; no pretrained weights."""
    model.data_preprocessor.batch_augments = None
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None)
        model.backbone.norm_cfg.requires_grad = True
        model.backbone.pop('dcn', None)
        channels = [8, 16, 32, 64]
        model.neck.in_channels = [channels[index] for index in model.backbone.out_indices]
        if model.neck.type == 'FPN':
            model.neck.out_channels = 32
            model.bbox_head.in_channels = model.bbox_head.feat_channels = 32
    elif model.backbone.type == 'SSDVGG':
        model.backbone.init_cfg = None
    else:  # CSPDarknet, CSPNeXt
        model.backbone.update(widen_factor=0.125, deepen_factor=0.167, init_cfg=None)
        model.neck.update(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
        model.bbox_head.update(in_channels=32, feat_channels=32)
    for part in ('encoder', 'decoder'):
        if part in model:
            model[part].num_layers = 2
            model[part].layer_cfg.ffn_cfg.feedforward_channels = 64


def use_small_language_model(model: dict) -> dict:
    """Replace BERT, whose weights need a network, in place: one token for a word, random embeddings.

    Layers are not recomputed, which needs fairscale. Returns what Grounding DINO reads of an image's meta information.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
    from check_override import register_language_model

    if MODELS.get('TinyLanguageModel') is None:
        register_language_model()
    model.language_model = dict(type='TinyLanguageModel')
    model.encoder.num_cp = 0
    return dict(text=('red box', 'green box', 'blue box', 'box'), custom_entities=True)


def images_and_samples(num_boxes=(3, 0), size=128, seed=0) -> dict:
    """A training batch of images with filled boxes on noise, one image per entry of ``num_boxes``."""
    rng = np.random.default_rng(seed)
    inputs, samples = [], []
    for count in num_boxes:
        image = rng.integers(90, 150, (3, size, size)).astype(np.uint8)
        corners = rng.uniform(0, 0.55 * size, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.2 * size, 0.45 * size, (count, 2))], 1)
        labels = rng.integers(0, NUM_CLASSES, count)
        for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels):
            image[:, y1:y2, x1:x2] = np.array([60 * label, 255 - 60 * label, 30])[:, None, None]
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                pad_shape=(size, size),
                batch_input_shape=(size, size),
                scale_factor=(1.0, 1.0),
                img_path=f'image{len(samples)}.jpg',
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels, dtype=torch.long)
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        inputs.append(torch.from_numpy(image))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def build(model: dict, seed: int = 0) -> torch.nn.Module:
    """Build and initialise a detector in training mode."""
    torch.manual_seed(seed)
    detector = MODELS.build(model)
    detector.init_weights()
    return detector.train()


def loss_of(detector: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Sum of a training step's losses."""
    data = detector.data_preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), True)
    losses = detector(**data, mode='loss')
    return detector.parse_losses(losses)[0]
