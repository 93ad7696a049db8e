"""Costs of a batch against mmdet's own, one image at a time."""

import pytest
import torch
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from uotod_mmdet.costs import batch_cost, make_batch, pairwise_overlaps

COSTS = [
    dict(type='ClassificationCost', weight=1.5),
    dict(type='FocalLossCost', weight=2.0),
    dict(type='FocalLossCost', alpha=0.4, gamma=1.5, weight=0.3),
    dict(type='BBoxL1Cost', weight=5.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='iou', weight=1.0),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
    dict(type='uotod_mmdet.LogIoUCost', weight=0.5),
    dict(type='uotod_mmdet.PriorCenterCost', weight=0.7),
    dict(type='uotod_mmdet.PriorIoUCost', weight=1.5),
    dict(type='uotod_mmdet.InsideGTCost', weight=20.0, center_radius=1.5),
]


def boxes(count, generator, dtype):
    corners = 100 * torch.rand(count, 2, generator=generator, dtype=dtype)
    return torch.cat([corners, corners + 1 + 60 * torch.rand(count, 2, generator=generator, dtype=dtype)], 1)


def images(counts, num_preds=40, num_classes=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    preds, gts, metas = [], [], []
    for index, count in enumerate(counts):
        preds.append(
            InstanceData(
                bboxes=boxes(num_preds, generator, dtype),
                priors=boxes(num_preds, generator, dtype),
                scores=3 * torch.randn(num_preds, num_classes, generator=generator, dtype=dtype),
            )
        )
        labels = torch.randint(0, num_classes, (count,), generator=generator)
        gts.append(InstanceData(bboxes=boxes(count, generator, dtype), labels=labels))
        metas.append(dict(img_shape=(100 + 10 * index, 160), img_path=f'image{index}.jpg'))
    return preds, gts, metas


def build(*configs):
    return [TASK_UTILS.build(config) for config in configs]


@pytest.mark.parametrize('dtype, bound', [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize('config', COSTS, ids=lambda config: '-'.join(map(str, config.values())))
def test_cost_of_a_batch_is_mmdets_cost_of_each_image(config, dtype, bound):
    preds, gts, metas = images((3, 0, 7, 1), dtype=dtype)
    (cost,) = build(config)
    found = batch_cost([cost], make_batch(preds, gts, metas))
    assert found.shape == (4, 40, 7) and found.dtype == dtype
    for index, (pred, gt, meta) in enumerate(zip(preds, gts, metas)):
        expected = cost(pred, gt, meta)
        difference = (found[index, :, : len(gt)] - expected).abs()
        assert (difference <= bound * expected.abs().clamp(min=1)).all()
        assert found[index, :, len(gt) :].eq(0).all()


@pytest.mark.parametrize('mode', ['iou', 'giou'])
def test_overlaps_are_mmdets(mode):
    generator = torch.Generator().manual_seed(1)
    pred, gt = (torch.stack([boxes(count, generator, torch.float32) for _ in range(3)]) for count in (50, 7))
    gt[0, 0] = 0  # padding
    pred[1, 1] = pred[1, 1].flip(0)  # upside down
    torch.testing.assert_close(
        pairwise_overlaps(pred, gt, mode), bbox_overlaps(pred, gt, mode=mode), rtol=1e-6, atol=1e-6
    )


def test_prior_costs_are_their_formulas():
    preds, gts, _ = images((5,))
    pred, gt = preds[0], gts[0]
    overlap, center, inside = build(
        dict(type='uotod_mmdet.PriorIoUCost', weight=2.0, iou_mode='iou'),
        dict(type='uotod_mmdet.PriorCenterCost', weight=0.7),
        dict(type='uotod_mmdet.InsideGTCost', weight=20.0, center_radius=0.5),
    )
    torch.testing.assert_close(overlap(pred, gt), -2 * bbox_overlaps(pred.priors, gt.bboxes))
    for row, prior in enumerate(pred.priors.tolist()):
        for column, box in enumerate(gt.bboxes.tolist()):
            (x, y), (w, h) = ((prior[i] + prior[i + 2]) / 2 for i in (0, 1)), (prior[i + 2] - prior[i] for i in (0, 1))
            dx, dy = x - (box[0] + box[2]) / 2, y - (box[1] + box[3]) / 2
            assert center(pred, gt)[row, column].item() == pytest.approx(0.7 * (dx**2 + dy**2) ** 0.5 / (w * h) ** 0.5)
            within = box[0] < x < box[2] and box[1] < y < box[3] and abs(dx) < 0.5 * w and abs(dy) < 0.5 * h
            assert inside(pred, gt)[row, column] == (0 if within else 20)
    with pytest.raises(ValueError, match="iou_mode must be 'iou' or 'giou', got 'ciou'"):
        build(dict(type='uotod_mmdet.PriorIoUCost', iou_mode='ciou'))


def test_costs_add_up():
    preds, gts, metas = images((3, 5))
    batch = make_batch(preds, gts, metas)
    terms = build(*COSTS)
    assert torch.allclose(batch_cost(terms, batch), sum(batch_cost([term], batch) for term in terms))


class SumOfCoordinates(BaseMatchCost):
    """A third-party cost that knows nothing of batches."""

    def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        assert pred_instances.scores.dim() == 2
        return self.weight * (pred_instances.bboxes.sum(1)[:, None] - gt_instances.bboxes.sum(1))


def test_any_other_match_cost_works_one_image_at_a_time():
    preds, gts, metas = images((2, 0, 4))
    found = batch_cost([SumOfCoordinates(0.5)], make_batch(preds, gts, metas))
    for index, gt in enumerate(gts):
        expected = 0.5 * (preds[index].bboxes.sum(1)[:, None] - gt.bboxes.sum(1))
        assert torch.equal(found[index, :, : len(gt)], expected)


def test_a_subclass_of_a_known_cost_is_not_mistaken_for_it():
    class Doubled(type(build(dict(type='IoUCost'))[0])):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    preds, gts, metas = images((4,))
    batch = make_batch(preds, gts, metas)
    assert torch.allclose(batch_cost([Doubled()], batch), 2 * batch_cost(build(dict(type='IoUCost')), batch))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32_and_boxes_do_not_overflow(dtype):
    preds, gts, metas = images((3,), dtype=torch.float32)
    preds[0].bboxes = (20 * preds[0].bboxes).to(dtype)  # areas above the largest float16
    gts[0].bboxes = 20 * gts[0].bboxes
    found = batch_cost(build(dict(type='IoUCost')), make_batch(preds, gts, metas))
    preds[0].bboxes = preds[0].bboxes.float()
    assert torch.equal(found, batch_cost(build(dict(type='IoUCost')), make_batch(preds, gts, metas)))
    assert found.dtype == torch.float32


def test_costs_carry_no_gradient():
    preds, gts, metas = images((3,))
    preds[0].bboxes.requires_grad_()
    assert not batch_cost(build(dict(type='IoUCost')), make_batch(preds, gts, metas)).requires_grad


def test_non_finite_cost_names_image_term_and_count():
    preds, gts, metas = images((3, 5))
    preds[1].scores[4] = float('nan')
    preds[1].scores[5, 0] = float('inf')
    batch = make_batch(preds, gts, metas)
    with pytest.raises(ValueError, match=r'^FocalLossCost is not finite at .* of 200 pairs .* image1.jpg'):
        batch_cost(build(*COSTS[5:7], COSTS[1]), batch)


def test_missing_inputs_are_named():
    preds, gts, metas = images((3,))
    only_boxes = [InstanceData(bboxes=preds[0].bboxes)]
    batch = make_batch(only_boxes, gts)
    with pytest.raises(ValueError, match=r"FocalLossCost needs scores.*\['bboxes'\]"):
        batch_cost(build(dict(type='FocalLossCost')), batch)
    with pytest.raises(ValueError, match='PriorCenterCost needs priors'):
        batch_cost(build(dict(type='uotod_mmdet.PriorCenterCost')), batch)
    with pytest.raises(ValueError, match='BBoxL1Cost needs img_meta with img_shape'):
        batch_cost(build(dict(type='BBoxL1Cost')), batch)
    with pytest.raises(ValueError, match="box_source='bboxes' does not fit .*'priors'"):
        make_batch([InstanceData(priors=preds[0].priors)], gts, box_source='bboxes')
