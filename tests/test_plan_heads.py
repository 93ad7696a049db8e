"""Our heads: with a plan of zeros and ones they are mmdet's; with a soft one they train."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

NUM_CLASSES = 5
CONFIGS = {
    'GFLHead': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'ATSSHead': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'VFNetHead': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'RetinaHead': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'SSDHead': 'mmdet::ssd/ssd300_coco.py',
    'DETRHead': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'ConditionalDETRHead': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'DABDETRHead': 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'DeformableDETRHead': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINOHead': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}
DENSE = ('GFLHead', 'ATSSHead', 'VFNetHead', 'RetinaHead', 'SSDHead')
DETR = tuple(head for head in CONFIGS if head not in DENSE)
IMAGE = 320
SIZES = [(320, 320), (250, 320), (320, 200)]  # height and width of each image; the rest is padding


def head_config(head: str, **changes) -> dict:
    """mmdet's own config of a head, ``train_cfg`` included, as a Config dict."""
    model = get_config(CONFIGS[head]).model
    init_default_scope('mmdet')
    cfg = copy.deepcopy(model.bbox_head)
    cfg.num_classes = NUM_CLASSES
    cfg.train_cfg = model.train_cfg
    cfg.test_cfg = model.test_cfg
    for name, value in changes.items():
        cfg[name] = value
    return cfg


def ground_truths(seed: int, with_ignored: bool) -> tuple[list, list, list]:
    """Three images of different size, the second without ground truth, with ignored boxes if asked for."""
    generator = torch.Generator().manual_seed(seed)
    gts, ignored, metas = [], [], []
    for (height, width), count in zip(SIZES, (6, 0, 3)):
        extent = torch.tensor([width, height], dtype=torch.float32)
        corner = torch.rand(count, 2, generator=generator) * 0.6 * extent
        size = (0.1 + 0.3 * torch.rand(count, 2, generator=generator)) * extent
        gts.append(
            InstanceData(
                bboxes=torch.cat([corner, corner + size], 1),
                labels=torch.randint(0, NUM_CLASSES, (count,), generator=generator),
            )
        )
        ignored.append(InstanceData(bboxes=torch.tensor([[0.0, 0, 0.4 * width, 0.4 * height]])[: int(with_ignored)]))
        metas.append(dict(img_shape=(height, width), pad_shape=(height, width), batch_input_shape=(IMAGE, IMAGE)))
    return gts, ignored, metas


def dense_outputs(head: torch.nn.Module, seed: int) -> list[list[torch.Tensor]]:
    """Random feature maps with gradient, as ``head.forward`` gives them: scores, boxes, and what else it has."""
    generator = torch.Generator().manual_seed(seed)
    name = type(head).__name__
    sizes = [38, 19, 10, 5, 3, 1] if name == 'SSDHead' else [40, 20, 10, 5, 3]
    priors = head.num_base_priors if isinstance(head.num_base_priors, list) else [head.num_base_priors] * len(sizes)

    def maps(channels: int, scale: float = 1.0, shift: float = 0.0) -> list[torch.Tensor]:
        return [
            (
                shift + scale * torch.randn(len(SIZES), count * channels, size, size, generator=generator)
            ).requires_grad_()
            for size, count in zip(sizes, priors)
        ]

    scores = maps(head.cls_out_channels, shift=-2.0)
    if name == 'GFLHead':
        return [scores, maps(4 * (head.reg_max + 1))]
    if name == 'ATSSHead':
        return [scores, maps(4, 0.2), maps(1)]
    if name == 'VFNetHead':
        boxes = [maps(4), maps(4)]
        for levels in boxes:
            for level, stride in zip(levels, head.strides):
                level.data = level.data.abs() * 3 * stride
        return [scores, *boxes]
    return [scores, maps(4, 0.2)]


def total(losses: dict, name: str) -> torch.Tensor:
    value = losses[name]
    return sum(v.sum() for v in value) if isinstance(value, (list, tuple)) else value


def assert_same_losses(stock: dict, ours: dict, leaves: list[torch.Tensor]) -> None:
    """Every loss term of mmdet's is ours to 1e-5, as is its gradient by every prediction."""
    names = {name for name in stock if 'loss' in name}
    assert names == {name for name in ours if 'loss' in name}
    for name in names:
        expected, found = total(stock, name), total(ours, name)

        def name_it(text: str, name: str = name) -> str:
            return f'{name}: {text}'

        torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-5, atol=1e-7, msg=name_it)
        kept = dict(retain_graph=True, allow_unused=True)
        for leaf, g, e in zip(
            leaves, torch.autograd.grad(found, leaves, **kept), torch.autograd.grad(expected, leaves, **kept)
        ):
            g, e = (torch.zeros_like(leaf) if grad is None else grad for grad in (g, e))
            torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5 * e.abs().max().item() + 1e-12, msg=name_it)


@pytest.mark.parametrize('ours_or_stock', ['stock assigner', 'our assigner'])
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('head', DENSE)
def test_a_dense_head_with_a_hard_plan_is_mmdets(head, seed, ours_or_stock):
    changes = dict(train_cfg=head_config(head).train_cfg)
    if head == 'GFLHead' and seed:
        changes['train_cfg'].pos_weight = 2.0
    if head == 'RetinaHead' and seed:
        changes.update(loss_bbox=dict(type='GIoULoss', loss_weight=2.0), reg_decoded_bbox=True)
    if ours_or_stock == 'our assigner':  # whose plan is one-hot: each prior to its best ground truth or background
        changes['train_cfg'].assigner = dict(
            type='uotod_mmdet.ClosestTargetAssigner',
            match_costs=[dict(type='IoUCost', iou_mode='iou'), dict(type='uotod_mmdet.InsideGTCost', weight=20.0)],
            background_cost=-0.3,
            box_source='priors',
            keep_every_gt=False,
        )
    cfg = head_config(head, **changes)
    stock = MODELS.build(cfg)
    ours = MODELS.build({**cfg, 'type': f'uotod_mmdet.{head}'})
    gts, ignored, metas = ground_truths(seed, with_ignored=head != 'VFNetHead')
    outputs = dense_outputs(stock, seed)
    losses = [h.loss_by_feat(*outputs, gts, metas, ignored) for h in (stock, ours)]
    assert_same_losses(*losses, [level for maps in outputs for level in maps])
    assert losses[1]['matched_mass'] > 1


def detr_outputs(num_columns: int, seed: int, num_layers: int = 3, num_preds: int = 40) -> list[torch.Tensor]:
    """Random scores and boxes of all layers: leaves, and what of them goes into the losses."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_layers, len(SIZES), num_preds)
    scores = torch.randn(*shape, num_columns, generator=generator).requires_grad_()
    boxes = torch.randn(*shape, 4, generator=generator).requires_grad_()
    return [scores, boxes]


@pytest.mark.parametrize('ours_or_stock', ['stock assigner', 'our assigner'])
@pytest.mark.parametrize('loss', ['its own', 'softmax', 'quality'])
@pytest.mark.parametrize('head', DETR)
def test_a_detr_head_with_a_hard_plan_is_mmdets(head, loss, ours_or_stock):
    changes = dict(train_cfg=head_config(head).train_cfg)
    if loss == 'softmax':
        if head != 'DETRHead':
            pytest.skip('mmdet gives class weights to its DETRHead only')
        changes['loss_cls'] = dict(
            type='CrossEntropyLoss', class_weight=1.5, bg_cls_weight=0.3, use_sigmoid=False, loss_weight=2.0
        )
    elif loss == 'quality':
        changes['loss_cls'] = dict(type='QualityFocalLoss', use_sigmoid=True, loss_weight=1.5)
    stock = MODELS.build(head_config(head, **copy.deepcopy(changes)))
    if ours_or_stock == 'our assigner':
        changes['train_cfg'].assigner.type = 'uotod_mmdet.HungarianAssigner'
    ours = MODELS.build({**head_config(head, **copy.deepcopy(changes)), 'type': f'uotod_mmdet.{head}'})
    gts, _, metas = ground_truths(3, with_ignored=False)
    scores, boxes = detr_outputs(stock.cls_out_channels, 5)
    leaves, args = [scores, boxes], [scores, boxes.sigmoid()]
    extra = {}
    if head in ('DeformableDETRHead', 'DINOHead'):
        enc_scores, enc_boxes = (leaf[0] for leaf in detr_outputs(stock.cls_out_channels, 6, num_preds=90))
        args += [enc_scores, enc_boxes.sigmoid()]
        leaves += [enc_scores, enc_boxes]
    if head == 'DINOHead':
        extra = dict(dn_meta=dict(num_denoising_queries=12, num_denoising_groups=1))
    losses = [h.loss_by_feat(*args, gts, metas, **extra) for h in (stock, ours)]
    assert_same_losses(*losses, leaves)
    assert ('enc_loss_cls' in losses[0]) == (len(args) == 4) and ('dn_loss_cls' in losses[0]) == (head == 'DINOHead')
