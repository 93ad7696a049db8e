"""Match costs of mmdet's dynamic assigners: what these assigners minimise, taken from mmdet itself."""

import pytest
import torch
from mmdet.models.task_modules.assigners import DynamicSoftLabelAssigner, SimOTAAssigner
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from uotod_mmdet.costs import batch_cost, make_batch

NUM_CLASSES, NUM_GTS = 6, 7


def image(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[InstanceData, InstanceData]:
    """Predictions at the points of a small pyramid, and ground truths."""
    generator = torch.Generator().manual_seed(seed)
    levels = MlvlPointGenerator([8, 16], offset=0).grid_priors([(16, 16), (8, 8)], dtype, 'cpu', with_stride=True)
    priors = torch.cat(levels)
    corners = torch.rand(NUM_GTS, 2, generator=generator, dtype=dtype) * 80
    gts = torch.cat([corners, corners + 15 + torch.rand(NUM_GTS, 2, generator=generator, dtype=dtype) * 40], 1)
    distances = priors[:, 2:].repeat(1, 2) * (0.5 + 2 * torch.rand(len(priors), 4, generator=generator, dtype=dtype))
    boxes = torch.cat([priors[:, :2] - distances[:, :2], priors[:, :2] + distances[:, 2:]], 1)
    scores = torch.randn(len(priors), NUM_CLASSES, generator=generator, dtype=dtype) * 2
    labels = torch.randint(0, NUM_CLASSES, (NUM_GTS,), generator=generator)
    return InstanceData(scores=scores, bboxes=boxes, priors=priors), InstanceData(bboxes=gts, labels=labels)


def costs_of(match_costs: list[dict], images: list, score_format: str = 'logits') -> torch.Tensor:
    predictions, truths = zip(*images)
    batch = make_batch(list(predictions), list(truths), prior_format='point', score_format=score_format)
    return batch_cost([TASK_UTILS.build(dict(cost)) for cost in match_costs], batch)


def what_mmdet_minimises(base: type, predictions: InstanceData, truths: InstanceData) -> tuple:
    """The cost matrix (V, M) of an assigner of mmdet's, and which predictions it is of (N,)."""
    seen = {}

    class Watched(base):
        def dynamic_k_matching(self, cost, pairwise_ious, num_gt, valid_mask):
            seen.update(cost=cost.clone(), valid=valid_mask.clone())
            return super().dynamic_k_matching(cost, pairwise_ious, num_gt, valid_mask)

    Watched().assign(predictions, truths)
    return seen['cost'], seen['valid']


@pytest.mark.parametrize('seed', [0, 1])
def test_costs_are_those_of_dynamic_soft_label_assigner(seed):
    predictions, truths = image(seed, torch.float32)  # mmdet's assigner takes no other
    expected, valid = what_mmdet_minimises(DynamicSoftLabelAssigner, predictions, truths)
    costs = [
        dict(type='uotod_mmdet.SoftLabelCost'),
        dict(type='uotod_mmdet.LogIoUCost', weight=3.0, eps=1e-7),
        dict(type='uotod_mmdet.SoftCenterCost', limit=1e30),
    ]
    found = costs_of(costs, [(predictions, truths)])[0][valid]
    overlaps = bbox_overlaps(predictions.bboxes, truths.bboxes)[valid]
    compared = overlaps > 1e-3  # mmdet adds 1e-7 to the IoU
    assert compared.sum() > 200
    torch.testing.assert_close(found[compared], expected[compared], rtol=1e-3, atol=1e-4)
    capped = costs_of([dict(type='uotod_mmdet.SoftCenterCost', weight=2.0, limit=50.0)], [(predictions, truths)])
    assert capped.max() == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize('seed', [0, 1])
def test_costs_are_those_of_sim_ota(seed):
    predictions, truths = image(seed, torch.float32)
    probabilities = InstanceData(**{**dict(predictions.items()), 'scores': predictions.scores.sigmoid()})
    expected, valid = what_mmdet_minimises(SimOTAAssigner, probabilities, truths)
    costs = [
        dict(type='uotod_mmdet.BinaryCrossEntropyCost'),
        dict(type='uotod_mmdet.LogIoUCost', weight=3.0, eps=1e-7),
        dict(type='uotod_mmdet.InsideGTCost', weight=1e5, center_radius=2.5),
    ]
    found = costs_of(costs, [(probabilities, truths)], 'probabilities')[0][valid]
    compared = (bbox_overlaps(predictions.bboxes, truths.bboxes)[valid] > 1e-3) & (expected < 1e4)
    assert compared.sum() > 30
    torch.testing.assert_close(found[compared], expected[compared], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('log', [True, False])
def test_task_alignment_cost_is_its_formula(log):
    predictions, truths = image()
    cost = dict(type='uotod_mmdet.TaskAlignmentCost', weight=2.0, alpha=0.5, beta=3.0, log=log, eps=1e-4)
    found = costs_of([cost], [(predictions, truths)])[0]
    score = predictions.scores.sigmoid()[:, truths.labels]
    overlap = bbox_overlaps(predictions.bboxes, truths.bboxes)
    if log:
        expected = -2 * (0.5 * score.clamp(min=1e-4).log() + 3 * overlap.clamp(min=1e-4).log())
    else:
        expected = -2 * score**0.5 * overlap**3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('rescale', [True, False])
def test_position_modulated_cost_is_its_formula(rescale):
    predictions, truths = image()
    cost = dict(type='uotod_mmdet.PositionModulatedCost', weight=2.0, beta=0.7, alpha=0.3, gamma=1.5, rescale=rescale)
    found = costs_of([cost], [(predictions, truths)])[0]
    fit = (bbox_overlaps(predictions.bboxes, truths.bboxes, mode='giou') + 1) / 2
    assert fit.max() < 0.99
    fit = fit / fit.max() if rescale else fit
    prob = predictions.scores.sigmoid()[:, truths.labels] * fit**0.7
    expected = -0.3 * (1 - prob) ** 1.5 * prob.log() + 0.7 * prob**1.5 * (1 - prob).log()
    torch.testing.assert_close(found, 2 * expected)


def test_position_modulated_cost_without_modulation_is_mmdets_focal_cost():
    predictions, truths = image()
    cost = dict(type='uotod_mmdet.PositionModulatedCost', weight=1.7, beta=0.0)
    found, expected = (costs_of([c], [(predictions, truths)]) for c in (cost, dict(type='FocalLossCost', weight=1.7)))
    torch.testing.assert_close(found, expected)


def test_high_order_cost_is_its_formula():
    predictions, truths = image()
    found = costs_of([dict(type='uotod_mmdet.HighOrderCost', weight=3.0)], [(predictions, truths)])[0]
    score, overlap = predictions.scores.sigmoid()[:, truths.labels], bbox_overlaps(predictions.bboxes, truths.bboxes)
    torch.testing.assert_close(found, -3 * score * overlap**4)


COSTS = [
    dict(type='uotod_mmdet.PositionModulatedCost', weight=1.4),
    dict(type='uotod_mmdet.HighOrderCost', beta=3.0),
    dict(type='uotod_mmdet.BinaryCrossEntropyCost', weight=0.7),
    dict(type='uotod_mmdet.SoftLabelCost', weight=1.3, beta=1.0),
    dict(type='uotod_mmdet.TaskAlignmentCost'),
    dict(type='uotod_mmdet.SoftCenterCost', radius=2.0),
    dict(type='uotod_mmdet.RegressRangeCost', regress_ranges=[(-1, 30), (30, 1e8)], strides=[8, 16]),
    dict(type='uotod_mmdet.GTAreaCost', weight=0.5),
]


@pytest.mark.parametrize('cost', COSTS, ids=lambda cost: cost['type'].split('.')[1])
def test_a_batch_has_the_costs_of_its_images(cost):
    """Images of different numbers of ground truths, one without."""
    images = [image(0), image(1), image(2)]
    images[1] = (images[1][0], images[1][1][:3])
    images[2] = (images[2][0], images[2][1][:0])
    metas = [dict(img_shape=(100, 128 + index)) for index in range(3)]
    predictions, truths = (list(values) for values in zip(*images))
    built = TASK_UTILS.build(dict(cost))
    batch = make_batch(predictions, truths, metas, prior_format='point', score_format='logits')
    found = batch_cost([built], batch)
    for index, (pred, gt) in enumerate(images):
        expected = built(pred, gt, metas[index])
        assert expected.shape == (len(pred), len(gt))
        torch.testing.assert_close(found[index, :, : len(gt)], expected)
        assert (found[index, :, len(gt) :] == 0).all()


def test_costs_read_probabilities_as_logits():
    """YOLOXHead of ours says that its scores are probabilities; the stock one is recognised by its points."""
    predictions, truths = image()
    costs = [dict(type='FocalLossCost', weight=2.0), dict(type='uotod_mmdet.SoftLabelCost')]
    expected = costs_of(costs, [(predictions, truths)])
    probabilities = InstanceData(**{**dict(predictions.items()), 'scores': predictions.scores.sigmoid()})
    torch.testing.assert_close(costs_of(costs, [(probabilities, truths)], 'probabilities'), expected)
    assigner = TASK_UTILS.build(
        dict(type='uotod_mmdet.HungarianAssigner', match_costs=[*costs, dict(type='IoUCost', weight=0.3)])
    )
    found, of_logits = (assigner.assign(pred, truths).gt_inds for pred in (probabilities, predictions))
    assert torch.equal(found, of_logits) and (found > 0).sum() == NUM_GTS


def test_bad_arguments_are_named():
    predictions, truths = image()
    with pytest.raises(ValueError, match='one entry for each level, got 5 ranges for the strides'):
        TASK_UTILS.build(dict(type='uotod_mmdet.RegressRangeCost', strides=[8, 16]))
    ranges = dict(type='uotod_mmdet.RegressRangeCost', regress_ranges=[(-1, 30), (30, 1e8)], strides=[8, 32])
    with pytest.raises(ValueError, match='a point has the stride 16, but strides='):
        costs_of([ranges], [(predictions, truths)])
    batch = make_batch([predictions], [truths], prior_format='anchor')
    with pytest.raises(ValueError, match='priors of this head are anchors'):
        batch_cost([TASK_UTILS.build(ranges)], batch)
    with pytest.raises(ValueError, match='GTAreaCost needs img_meta with img_shape'):
        costs_of([dict(type='uotod_mmdet.GTAreaCost')], [(predictions, truths)])
    with pytest.raises(ValueError, match='beta must be'):
        TASK_UTILS.build(dict(type='uotod_mmdet.TaskAlignmentCost', beta=-1))
    with pytest.raises(ValueError, match='beta must be'):
        TASK_UTILS.build(dict(type='uotod_mmdet.HighOrderCost', beta=-1))
    with pytest.raises(ValueError, match=r'alpha must be in \[0, 1\], got 2'):
        TASK_UTILS.build(dict(type='uotod_mmdet.PositionModulatedCost', alpha=2))
