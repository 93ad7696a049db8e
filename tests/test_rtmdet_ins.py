"""RTMDet-Ins on the whole plan: with a plan of zeros and ones mmdet's, and bad masks are named."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from test_plan_heads import IMAGE, NUM_CLASSES, SIZES, assert_same_losses, dense_outputs, ground_truths
from test_point_heads import COSTS, MASS, STRATEGIES, in_training
from tiny_masks import batch_with_masks
from tiny_models import build, shrink_backbone

CONFIG = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'


def ins_config(**changes) -> dict:
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    model = get_config(CONFIG).model
    init_default_scope('mmdet')
    cfg = model.bbox_head
    cfg.update(num_classes=NUM_CLASSES, train_cfg=model.train_cfg, test_cfg=model.test_cfg, **changes)
    return cfg


def with_masks(gts: list[InstanceData]) -> list[InstanceData]:
    """The ground truths with ellipses in their boxes as masks, of the padded image."""
    y, x = torch.meshgrid(torch.arange(IMAGE), torch.arange(IMAGE), indexing='ij')
    for gt in gts:
        x1, y1, x2, y2 = gt.bboxes[:, :, None, None].unbind(1)
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
        gt.masks = BitmapMasks(inside.numpy().astype('uint8').reshape(-1, IMAGE, IMAGE), IMAGE, IMAGE)
    return gts


def outputs_of(head: torch.nn.Module, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed + 10)
    kernels = [
        (0.3 * torch.randn(len(SIZES), head.num_gen_params, size, size, generator=generator)).requires_grad_()
        for size in (40, 20, 10)
    ]
    mask_feat = torch.randn(len(SIZES), head.num_prototypes, 40, 40, generator=generator).requires_grad_()
    return [*dense_outputs(head, seed), kernels, mask_feat]


@pytest.mark.parametrize('kind', ['RTMDetInsHead', 'RTMDetInsSepBNHead'])
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_mask_head_with_mmdets_assigner_is_mmdets(seed, kind):
    cfg = ins_config(type=kind)
    if kind == 'RTMDetInsHead':
        cfg.pop('share_conv')
    stock, ours = MODELS.build(cfg), MODELS.build({**cfg, 'type': f'uotod_mmdet.{kind}'})
    gts, ignored, metas = ground_truths(seed, with_ignored=True)
    for meta in metas:  # on images with padding mmdet mixes the predictions up
        meta['pad_shape'] = (IMAGE, IMAGE)
    outputs = outputs_of(stock, seed)
    # mmdet's head replaces the masks of its arguments.
    losses = [head.loss_by_feat(*outputs, with_masks(copy.deepcopy(gts)), metas, ignored) for head in (stock, ours)]
    assert_same_losses(*losses, [*(level for maps in outputs[:3] for level in maps), outputs[3]])
    assert losses[0]['loss_mask'] > 0.1


def soft_head() -> torch.nn.Module:
    cfg = ins_config()
    cfg.train_cfg.assigner = dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner', match_costs=COSTS, reg_pred=None, reg_target=100.0, **MASS
    )
    return MODELS.build({**cfg, 'type': 'uotod_mmdet.RTMDetInsSepBNHead'})


def test_a_soft_plan_weighs_the_mask_loss_of_each_pair():
    head = soft_head()
    gts, _, metas = ground_truths(0, with_ignored=False)
    outputs, seen = outputs_of(head, 0), []
    box_losses = head.box_losses
    head.box_losses = lambda *args: seen.append(box_losses(*args)) or seen[-1]
    losses = head.loss_by_feat(*outputs, with_masks(gts), metas)
    _, matched, _ = seen[0]
    kernels = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in outputs[2]], 1).flatten(0, 1)
    expected, num_gts = 0.0, max(map(len, gts))
    for row, gt, image, weight, prior in zip(*matched.pairs[:4], matched.priors):
        logits = head._mask_predict_by_feat_single(outputs[3][image], kernels[row][None], prior[None])
        prob = torch.nn.functional.interpolate(logits[None], scale_factor=2, mode='bilinear')[0, 0].sigmoid()
        mask = torch.from_numpy(gts[image].masks.masks[gt - image * num_gts])[2::4, 2::4].float()
        dice = 1 - (2 * (prob * mask).sum()) / ((prob**2).sum() + (mask**2).sum() + 2 * 5e-6)
        expected = expected + 2 * weight * dice
    assert len(matched.pairs.rows) > matched.pairs.weight.sum() > 5  # more pairs than mass: the plan is soft
    torch.testing.assert_close(losses['loss_mask'], expected / matched.pairs.weight.sum(), rtol=1e-4, atol=1e-6)


def test_images_without_objects_give_finite_losses_and_gradients():
    head = soft_head()
    gts, _, metas = ground_truths(0, with_ignored=False)
    outputs = outputs_of(head, 0)
    losses = head.loss_by_feat(*outputs, with_masks([gts[1]] * 3), metas)
    assert losses['loss_mask'] == 0
    gradient = torch.autograd.grad(losses['loss_mask'] + losses['loss_cls'], outputs[3])[0]
    assert (gradient == 0).all()


def test_masks_that_do_not_fit_are_named():
    head = soft_head()
    gts, _, metas = ground_truths(0, with_ignored=False)
    outputs = outputs_of(head, 0)
    with pytest.raises(ValueError, match=r'masks of image 0 must have shape .*\(6, 320, 320\).*got none.*with_mask'):
        head.loss_by_feat(*outputs, gts, metas)
    small = with_masks(gts)
    small[2].masks = small[2].masks.resize((160, 160))
    with pytest.raises(ValueError, match=r'masks of image 2 .*got \(3, 160, 160\)'):
        head.loss_by_feat(*outputs, small, metas)


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner'])
def test_a_detector_overfits_the_masks_of_two_images_on_a_soft_plan(strategy):
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    model = get_config(CONFIG).model
    init_default_scope('mmdet')
    shrink_backbone(model)
    model.bbox_head.update(type='uotod_mmdet.RTMDetInsSepBNHead', num_classes=4, stacked_convs=1)
    model.train_cfg.assigner = dict(type=f'uotod_mmdet.{strategy}', **STRATEGIES[strategy])
    history = in_training(build(model), 70, 8e-3, batch_with_masks((3, 2), 96), 'loss_mask')
    assert min(history[-5:]) < 0.5 * max(history), history[::7]
