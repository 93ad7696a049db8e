"""DDQDETRHead and GroundingDINOHead of ours: mmdet's with a hard plan; with a soft one the formula, and they train.

Grounding DINO's scores are those of the tokens of a text. The tests of its head alone have random scores and token
maps; in those that train its detector a stand-in for BERT, whose weights need a network, gives each word a random
embedding.
"""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners.match_cost import BinaryFocalLossCost
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, bbox_xyxy_to_cxcywh
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from test_plan_heads import SIZES, assert_same_losses, detr_outputs, ground_truths, total
from tiny_models import build, images_and_samples, loss_of, shrink_backbone, use_small_language_model

from uotod_mmdet.costs import batch_cost, make_batch
from uotod_mmdet.heads import DETRHead
from uotod_mmdet.registry import TASK_UTILS

CONFIGS = {
    'DDQDETRHead': 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
    'GroundingDINOHead': 'mmdet::grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py',
}
NUM_CLASSES, TOKENS = 5, 32
TEXTS = (12, 12, 9)  # tokens of each image's text
COSTS = [
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
CLASS_COSTS = {
    'DDQDETRHead': dict(type='FocalLossCost', weight=2.0),
    'GroundingDINOHead': dict(type='BinaryFocalLossCost', weight=2.0),
}


def assigner_config(head: str, name: str) -> dict:
    if name == 'mmdet.HungarianAssigner':
        return dict(type='HungarianAssigner', match_costs=[CLASS_COSTS[head], *COSTS])
    if name == 'OTAAssigner':
        return dict(type='uotod_mmdet.OTAAssigner')
    cfg = dict(type=f'uotod_mmdet.{name}', match_costs=[CLASS_COSTS[head], *COSTS])
    if name == 'BalancedSinkhornAssigner':
        cfg.update(reg=0.02)
    elif name == 'UnbalancedSinkhornAssigner':
        cfg.update(reg=0.02, reg_target=1.0)
    return cfg


def head_of(head: str, assigner: str, ours: bool = True, **changes) -> torch.nn.Module:
    """The head of mmdet's config, small, with the cached selection of queries or the text that its detector gives."""
    model = get_config(CONFIGS[head]).model
    init_default_scope('mmdet')
    cfg = model.bbox_head
    cfg.update(num_classes=NUM_CLASSES, test_cfg=model.test_cfg, share_pred_layer=False, num_pred_layer=4)
    cfg.update(as_two_stage=True, embed_dims=16, train_cfg=dict(assigner=assigner_config(head, assigner)))
    if head == 'GroundingDINOHead':
        cfg.contrastive_cfg.max_text_len = TOKENS
    for name, value in copy.deepcopy(changes).items():
        cfg[name] = value
    built = MODELS.build({**cfg, 'type': f'uotod_mmdet.{head}' if ours else head})
    if head == 'GroundingDINOHead':
        built.text_masks = text_masks()
    else:
        generator = torch.Generator().manual_seed(11)
        selected = torch.rand(2, len(SIZES), 1, 40, generator=generator) < 0.7
        built.cache_dict = dict(
            num_heads=2, distinct_query_mask=list(selected.repeat_interleave(2, 1).expand(-1, -1, 40, -1))
        )
    return built


def text_masks() -> torch.Tensor:
    return torch.arange(max(TEXTS)) < torch.tensor(TEXTS)[:, None]


def with_token_maps(gts: list) -> list:
    """Class c is the tokens c + 1 and, for even classes, c + 2, so that classes share tokens."""
    for gt, mask in zip(gts, text_masks()):
        maps = F.one_hot(gt.labels + 1, TOKENS) + F.one_hot(gt.labels + 2, TOKENS) * (1 - gt.labels % 2)[:, None]
        gt.positive_maps = maps.float()
        gt.text_token_mask = mask.repeat(len(gt), 1)
    return gts


def inputs_of(head: str, seed: int, denoising: int = 12, dense: int = 7) -> tuple[list, list, dict]:
    """Leaves, arguments of loss_by_feat, and its keywords; the second image has no objects."""
    gts, _, metas = ground_truths(seed, with_ignored=False)
    dense = dense if head == 'DDQDETRHead' else 0
    columns = NUM_CLASSES if head == 'DDQDETRHead' else TOKENS
    scores, boxes = detr_outputs(columns, seed, num_preds=denoising + 40 + dense)
    enc_scores, enc_boxes = (leaf[0] for leaf in detr_outputs(columns, seed + 50, num_preds=40))
    leaves = [scores, boxes, enc_scores, enc_boxes]
    extra = dict(dn_meta=dict(num_denoising_queries=denoising, num_denoising_groups=1))
    if head == 'DDQDETRHead':
        extra['dn_meta']['num_dense_queries'] = dense
    else:
        gts = with_token_maps(gts)
        outside = F.pad(~text_masks(), (0, TOKENS - max(TEXTS)), value=True)[:, None]
        scores, enc_scores = (s.masked_fill(outside, -torch.inf) for s in (scores, enc_scores))  # as ContrastiveEmbed
    return leaves, [scores, boxes.sigmoid(), enc_scores, enc_boxes.sigmoid(), gts, metas], extra


LOSSES = {
    'its own': {},
    'cross-entropy': dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.5)),
    'varifocal': dict(loss_cls=dict(type='VarifocalLoss', use_sigmoid=True, loss_weight=1.5)),
}


@pytest.mark.parametrize('assigner', ['mmdet.HungarianAssigner', 'HungarianAssigner'])
@pytest.mark.parametrize(
    'loss', [pytest.param(loss, marks=[pytest.mark.slow] * (loss != 'its own')) for loss in LOSSES]
)
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('head', CONFIGS)
def test_with_a_hard_plan_the_head_is_mmdets(head, seed, loss, assigner):
    if head == 'DDQDETRHead' and loss == 'varifocal':
        pytest.skip("mmdet's DDQDETRHead gives it labels, which it does not take")
    stock = head_of(head, 'mmdet.HungarianAssigner', ours=False, **LOSSES[loss])
    ours = head_of(head, assigner, **LOSSES[loss])
    leaves, args, extra = inputs_of(head, seed)
    losses = [h.loss_by_feat(*args, **extra) for h in (stock, ours)]
    assert_same_losses(*losses, leaves)
    names = {'loss_cls', 'd0.loss_iou', 'enc_loss_cls', 'dn_loss_cls', 'd1.dn_loss_bbox'}
    names |= {'0_aux_aux_loss_cls', '2_aux_aux_loss_bbox'} if head == 'DDQDETRHead' else set()
    assert names <= set(losses[1]) and losses[1]['matched_mass'] == 3  # 6, 0 and 3 objects


@pytest.mark.parametrize('head', CONFIGS)
def test_an_images_losses_are_the_same_alone(head):
    """Batches of one, with few objects and with none, sum to the batch of all."""
    leaves, args, _ = inputs_of(head, 0)
    scores, boxes, *_, gts, metas = args
    together = head_of(head, 'BalancedSinkhornAssigner')
    if head == 'DDQDETRHead':
        together.cache_dict['distinct_query_mask'] = 2 * [torch.ones(6, 52, 52, dtype=torch.bool)]
        scores, boxes = scores[:, :, :52], boxes[:, :, :52]
    expected, _ = together._layer_losses(scores, boxes, gts, metas)
    mass, sums = [], torch.zeros(3)
    for index in range(len(gts)):
        if head == 'GroundingDINOHead':
            together.text_masks = text_masks()[index : index + 1]
        image = slice(index, index + 1)
        losses, statistics = together._layer_losses(scores[:, image], boxes[:, image], gts[image], metas[image])
        mass.append(statistics['matched_mass'])
        sums = sums + losses['loss_cls'] * statistics['matched_mass'].clamp(min=1)
    torch.testing.assert_close(sums / sum(mass), expected['loss_cls'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('head', CONFIGS)
def test_all_layers_and_images_are_matched_as_one_batch(head):
    model = head_of(head, 'BalancedSinkhornAssigner')
    shapes, match_batch = [], model.matcher.match_batch
    model.matcher.match_batch = lambda batch: shapes.append(batch.shape) or match_batch(batch)
    _, args, extra = inputs_of(head, 0)
    model.loss_by_feat(*args, **extra)
    assert shapes == [(9, 40, 6), (3, 40, 6)]  # 3 layers of 3 images; the encoder's proposals


@pytest.mark.slow
@pytest.mark.parametrize('head', CONFIGS)
def test_bf16_autocast_is_close_to_float32(head):
    """Of what the plan weighs; mmdet's auxiliary loss of DDQ DETR ends in an error in bf16."""
    model = head_of(head, 'BalancedSinkhornAssigner')
    _, (scores, boxes, *_, gts, metas), _ = inputs_of(head, 0)
    decoder = model.loss_for_distinct_queries if head == 'DDQDETRHead' else partial(DETRHead.loss_by_feat, model)
    scores, boxes = scores[:, :, 12:52], boxes[:, :, 12:52]
    expected = decoder(scores, boxes, gts, metas)
    with torch.autocast('cpu', torch.bfloat16):
        found = decoder(scores.bfloat16(), boxes.bfloat16(), gts, metas)
    for name in (name for name in expected if 'loss' in name):
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=1e-3, msg=name)


def test_queries_that_the_selection_left_out_have_no_loss_and_no_mass():
    model = head_of('DDQDETRHead', 'BalancedSinkhornAssigner')
    plans, match_batch = [], model.matcher.match_batch
    model.matcher.match_batch = lambda batch: plans.append(match_batch(batch)) or plans[-1]
    leaves, args, extra = inputs_of('DDQDETRHead', 0)
    losses = model.loss_by_feat(*args, **extra)
    of_plan = sum(losses[name] for name in losses if name.split('.')[-1] in ('loss_cls', 'loss_bbox', 'loss_iou'))
    gradient = torch.autograd.grad(of_plan, leaves[0])[0][:, :, 12:52]
    selected = torch.stack([mask[::2, 0] for mask in model.cache_dict['distinct_query_mask']])
    plan = plans[0].plan.view(3, 3, 40, -1)
    assert torch.equal(plan[1:].sum(3) > 0.5, selected) and (plan[0].sum(2) > 0.5).all()
    assert torch.equal(gradient[1:].any(3), selected) and gradient[0].any(2).all()


def test_the_batched_token_cost_is_mmdets_of_each_image():
    _, (scores, *_, gts, metas), _ = inputs_of('GroundingDINOHead', 0)
    cost = BinaryFocalLossCost(weight=2.0, alpha=0.3, gamma=1.5)
    batch = make_batch(dict(scores=scores[0], bboxes=torch.rand(3, 52, 4)), gts, metas)
    found = batch_cost([cost], batch)
    for index in (0, 2):
        expected = cost(InstanceData(scores=scores[0, index]), gts[index])
        torch.testing.assert_close(found[index, :, : len(gts[index])], expected, rtol=1e-5, atol=1e-5)
    assert not found[1].any() and not found[2, :, 3:].any()


def focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss (Lin et al., 2017), alpha 0.25 and gamma 2, of targets 0 and 1, summed over tokens."""
    prob = logits.sigmoid()
    positive, negative = -0.25 * (1 - prob) ** 2 * F.logsigmoid(logits), -0.75 * prob**2 * F.logsigmoid(-logits)
    return torch.where(target > 0, positive, negative).sum(1)


def dense_losses(scores, boxes, plan, gts, metas) -> dict:
    """Losses of one layer in float64, pair by pair: (B, N, T), (B, N, 4), (B, N, M + 1)."""
    sums, mass = dict(loss_cls=0.0, loss_bbox=0.0, loss_iou=0.0), 0.0
    for index, (gt, meta) in enumerate(zip(gts, metas)):
        height, width = meta['img_shape']
        size = torch.tensor([width, height, width, height], dtype=torch.float64)
        logits, targets = scores[index, :, : TEXTS[index]].double(), gt.positive_maps[:, : TEXTS[index]].double()
        pred, weights = boxes[index].double(), plan[index].double()
        sums['loss_cls'] += (weights[:, -1] * focal(logits, torch.zeros_like(logits))).sum()
        for j, (box, target) in enumerate(zip(gt.bboxes.double(), targets)):
            weight = weights[:, j]
            mass += weight.sum()
            sums['loss_cls'] += (weight * focal(logits, target)).sum()
            sums['loss_bbox'] += 5 * (weight * (pred - bbox_xyxy_to_cxcywh(box / size)).abs().sum(1)).sum()
            giou = bbox_overlaps(bbox_cxcywh_to_xyxy(pred) * size, box[None], mode='giou')[:, 0]
            sums['loss_iou'] += 2 * (weight * (1 - giou)).sum()
    return {name: value / mass for name, value in sums.items()}


@pytest.mark.parametrize('assigner', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner', 'OTAAssigner'])
def test_a_soft_plan_gives_the_dense_formula_of_token_targets(assigner):
    model = head_of('GroundingDINOHead', assigner, min_weight=0)
    model.assigner.reg = 0.1  # so soft that the maps of several ground truths mix
    plans, match_batch = [], model.matcher.match_batch
    model.matcher.match_batch = lambda batch: plans.append(match_batch(batch)) or plans[-1]
    leaves, args, extra = inputs_of('GroundingDINOHead', 0)
    losses = model.loss_by_feat(*args, **extra)
    decoder = plans[0].plan.view(3, 3, 40, -1)
    assert ((decoder[..., :-1] > 0.02).sum(-1) > 1).any()
    scores, boxes, enc_scores, enc_boxes, gts, metas = args
    scores, boxes = scores[:, :, 12:], boxes[:, :, 12:]
    for prefix, inputs in {
        'd0.': (scores[0], boxes[0], decoder[0]),
        'd1.': (scores[1], boxes[1], decoder[1]),
        '': (scores[2], boxes[2], decoder[2]),
        'enc_': (enc_scores, enc_boxes, plans[1].plan),
    }.items():
        for name, expected in dense_losses(*inputs, gts, metas).items():
            found = losses[prefix + name]
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6, msg=f'{prefix}{name}')
            own = leaves if prefix != 'enc_' else leaves[2:]
            for g, e in zip(
                torch.autograd.grad(found, own, retain_graph=True, allow_unused=True),
                torch.autograd.grad(expected, own, retain_graph=True, allow_unused=True),
            ):
                if e is not None:
                    torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6, msg=f'{prefix}{name}')


def test_ota_compares_tokens_where_the_ground_truths_are_tokens():
    _, (scores, boxes, *_, gts, metas), _ = inputs_of('GroundingDINOHead', 0)
    batch = make_batch(
        dict(scores=scores[0], bboxes=bbox_cxcywh_to_xyxy(boxes[0]) * 300), gts, metas, score_format='logits'
    )
    ota = TASK_UTILS.build(dict(type='uotod_mmdet.OTAAssigner', cls_weight=1.5))
    expected = batch_cost([ota.match_costs[0], BinaryFocalLossCost(weight=1.5)], batch)
    torch.testing.assert_close(ota._cost(batch)[:, :, :-1], expected)


# Bad input


def call_grounding(change=lambda head, gts: None, assigner='BalancedSinkhornAssigner'):
    model = head_of('GroundingDINOHead', assigner)
    _, args, extra = inputs_of('GroundingDINOHead', 0)
    change(model, args[4])
    return model.loss_by_feat(*args, **extra)


def test_a_text_without_the_class_of_a_ground_truth_is_named():
    def change(head, gts):
        gts[2].positive_maps[1] = 0

    with pytest.raises(
        ValueError, match=r'instances\[2\].positive_maps is 0 for 1 of 3 .* text prompt lacks their class'
    ):
        call_grounding(change)


def test_a_class_beyond_the_end_of_the_text_is_named():
    def change(head, gts):
        gts[2].positive_maps[1] = 0
        gts[2].positive_maps[1, TEXTS[2] :] = 1

    with pytest.raises(ValueError, match=r'positive_maps is 0 for 1 of 3 .* keep the prompt within max_text_len=32'):
        call_grounding(change)


@pytest.mark.parametrize('value', [None, torch.ones(6, 8), torch.ones(6, TOKENS, 1)])
def test_missing_and_misshaped_token_maps_are_named(value):
    def change(head, gts):
        del gts[0].positive_maps
        if value is not None:
            gts[0].positive_maps = value

    with pytest.raises(
        ValueError, match=r'batch_gt_instances\[0\].positive_maps must have shape \(6, 32\).*GroundingDINO'
    ):
        call_grounding(change)


@pytest.mark.parametrize('masks', [None, torch.ones(2, 12), torch.ones(3, TOKENS + 1), torch.ones(3)])
def test_a_head_without_the_masks_of_its_text_is_named(masks):
    def change(head, gts):
        del head.text_masks
        if masks is not None:
            head.text_masks = masks

    with pytest.raises(
        ValueError, match=r'text_masks must be \(images, tokens\), here \(3, at most 32\).*set.*text_masks'
    ):
        call_grounding(change)


@pytest.mark.parametrize('assigner', ['BalancedSinkhornAssigner', 'OTAAssigner'])
def test_ground_truths_without_the_mask_that_costs_read_are_named(assigner):
    def change(head, gts):
        del gts[0].text_token_mask

    with pytest.raises(
        ValueError, match='gt_instances.text_token_mask of image 0 of the batch must have shape .6, tokens'
    ):
        call_grounding(change, assigner)


def test_a_cost_of_classes_on_scores_of_tokens_is_refused():
    def change(head, gts):
        head.assigner.match_costs[0] = TASK_UTILS.build(dict(type='FocalLossCost'))

    with pytest.raises(ValueError, match='FocalLossCost reads the score of a class.*take .*BinaryFocalLossCost'):
        call_grounding(change)


@pytest.mark.parametrize(
    'loss', [dict(type='QualityFocalLoss', use_sigmoid=True), dict(type='CrossEntropyLoss', use_sigmoid=False)]
)
def test_a_loss_that_cannot_read_tokens_is_refused_when_the_head_is_built(loss):
    with pytest.raises(ValueError, match='GroundingDINOHead: .*loss_cls=.* Losses that fit: FocalLoss, VarifocalLoss'):
        head_of('GroundingDINOHead', 'BalancedSinkhornAssigner', loss_cls=loss)


@pytest.mark.parametrize('head', CONFIGS)
def test_nan_scores_are_named_with_the_cost(head):
    leaves, args, extra = inputs_of(head, 0)
    args[0] = args[0].detach().clone()
    args[0][1, 2, 20, :5] = torch.nan
    model = head_of(head, 'BalancedSinkhornAssigner')
    if head == 'DDQDETRHead':
        model.cache_dict['distinct_query_mask'] = 2 * [torch.ones(6, 40, 40, dtype=torch.bool)]
    name = CLASS_COSTS[head]['type']
    with pytest.raises(ValueError, match=f'^{name} is not finite at .* of 120 pairs .* of image 5 of the batch'):
        model.loss_by_feat(*args, **extra)


def test_nan_in_the_denoising_scores_is_named():
    leaves, args, extra = inputs_of('GroundingDINOHead', 0)
    args[0] = args[0].detach().clone()
    args[0][1, 2, 3, 3] = torch.nan
    with pytest.raises(ValueError, match='GroundingDINOHead: dn_loss_cls .*denoising_cls_scores holds 1 NaN'):
        head_of('GroundingDINOHead', 'BalancedSinkhornAssigner').loss_by_feat(*args, **extra)


@pytest.mark.parametrize('head', CONFIGS)
@pytest.mark.parametrize('assigner', ['mmdet.HungarianAssigner', 'BalancedSinkhornAssigner', 'OTAAssigner'])
def test_images_without_objects_have_background_losses_only(head, assigner):
    leaves, args, extra = inputs_of(head, 0)
    args[4] = [gt[:0] for gt in args[4]]
    losses = head_of(head, assigner).loss_by_feat(*args, **extra)
    assert losses['loss_cls'] > 0 and losses['loss_bbox'] == losses['loss_iou'] == losses['matched_mass'] == 0
    assert torch.autograd.grad(losses['loss_cls'], leaves[0])[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize('head', CONFIGS)
def test_five_hundred_objects_for_forty_queries_train(head):
    generator = torch.Generator().manual_seed(0)
    leaves, args, extra = inputs_of(head, 0, denoising=1000, dense=500)  # mmdet's parts need so many
    corner = 150 * torch.rand(500, 2, generator=generator)
    args[4][0] = InstanceData(bboxes=torch.cat([corner, corner + 40], 1), labels=torch.arange(500) % NUM_CLASSES)
    if head == 'GroundingDINOHead':
        args[4] = with_token_maps(args[4])
    for assigner in (
        'mmdet.HungarianAssigner',
        'BalancedSinkhornAssigner',
        'UnbalancedSinkhornAssigner',
        'OTAAssigner',
    ):
        losses = head_of(head, assigner).loss_by_feat(*args, **extra)
        everything = sum(total(losses, name) for name in losses if 'loss' in name)
        assert torch.autograd.grad(everything, leaves[0], retain_graph=True)[0].isfinite().all()
        assert losses['matched_mass'] > 11  # all selected queries of the first image, and 3 of the third


def test_a_selection_that_the_detector_did_not_leave_is_named():
    model = head_of('DDQDETRHead', 'BalancedSinkhornAssigner')
    model.cache_dict['distinct_query_mask'].pop()
    _, args, extra = inputs_of('DDQDETRHead', 0)
    with pytest.raises(ValueError, match=r'cache_dict must hold distinct_query_mask.* 2 decoder layers.*DDQDETR'):
        model.loss_by_feat(*args, **extra)


# Training


def detector_config(head: str, assigner: str) -> dict:
    """mmdet's detector, cut down; its text gets random embeddings from a stand-in for BERT."""
    model = get_config(CONFIGS[head]).model
    init_default_scope('mmdet')
    shrink_backbone(model)
    model.num_queries = 50
    model.bbox_head.num_classes = 4
    if head == 'GroundingDINOHead':
        model.encoder.text_layer_cfg.ffn_cfg.feedforward_channels = 64
        model.encoder.fusion_layer_cfg.embed_dim = 64
    model.bbox_head.type = f'uotod_mmdet.{head}'
    model.train_cfg.assigner = assigner_config(head, assigner)
    return model


@pytest.mark.slow
@pytest.mark.parametrize('assigner', ['BalancedSinkhornAssigner', 'UnbalancedSinkhornAssigner', 'OTAAssigner'])
@pytest.mark.parametrize('head', CONFIGS)
def test_the_detector_overfits_two_images_on_a_soft_plan(head, assigner):
    """Its loss falls by half within 50 steps."""
    model, batch = detector_config(head, assigner), images_and_samples((3, 2))
    if head == 'GroundingDINOHead':
        text = use_small_language_model(model)
        for sample in batch['data_samples']:
            sample.set_metainfo(text)
    detector = build(model)
    assert type(detector.bbox_head).__module__.startswith('uotod_mmdet.')
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    history = []
    for step in range(50):
        torch.manual_seed(step)  # of the denoising's noise
        optimizer.zero_grad()
        loss = loss_of(detector, batch)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append(loss.item())
        if step > 2 and sum(history[-3:]) / 3 < 0.5 * history[0]:
            return
    pytest.fail(f'the loss has not fallen by half: {history}')
