"""What a head matches on fixed images: recorded without lasting effect, and drawn."""

import random

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from tiny_models import (
    DENSE,
    MORE_POINT,
    MORE_QUERY_BASED,
    PREDICTION_AWARE,
    QUERY_BASED,
    build,
    images_and_samples,
    tiny_config,
)
from tiny_runs import tiny_run, without_validation

from uotod_mmdet.visualization import fixed_items, matchings_of, plain_pipeline, record, why_not
from uotod_mmdet.visualization.figures import heaviest_rows, matching_figure, rendered


def detector_of(head, ours=True, assigner=None):
    costs = [dict(type='IoUCost', iou_mode='giou')]
    model = tiny_config(head, assigner or dict(type='uotod_mmdet.HungarianAssigner', match_costs=costs))
    if ours:
        model.bbox_head.type = f'uotod_mmdet.{model.bbox_head.type}'
    return build(model)


def items_of(num_boxes=(3,), size=160):
    batch = images_and_samples(num_boxes, size)
    return [dict(inputs=i, data_samples=s) for i, s in zip(batch['inputs'], batch['data_samples'])]


def everything(detector):
    """All that recording might change: weights, statistics, modes, assigners, random states."""
    state = {name: value.clone() for name, value in detector.state_dict().items() if 'aux_reg' not in name}
    head = detector.bbox_head
    assigners = [dict(vars(value)) for name, value in vars(head).items() if 'assigner' in name or 'matcher' in name]
    states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return state, [module.training for module in detector.modules()], assigners, states


@pytest.mark.slow
@pytest.mark.parametrize('ours', [True, False])
@pytest.mark.parametrize('head', [*DENSE, *PREDICTION_AWARE, *MORE_POINT, *QUERY_BASED, *MORE_QUERY_BASED])
def test_recorded_plans_are_those_of_the_heads_assigner_and_nothing_changes(head, ours):
    if not ours and head in MORE_POINT:
        return  # mmdet's FCOSHead has no assigner, its TOODHead works within a Runner only
    detector, items = detector_of(head, ours), items_of((3,), 300 if head == 'SSDHead' else 160)
    head_outputs = []
    detector.bbox_head.register_forward_hook(lambda module, args, output: head_outputs.append(output))
    before = everything(detector)
    (records,) = matchings_of(detector, items)
    state, *others = everything(detector)
    torch.testing.assert_close(state, before[0], rtol=0, atol=0)
    assert others == list(before[1:])
    torch.manual_seed(5)
    for now, then in zip(matchings_of(detector, items)[0], records):
        assert torch.equal(now.plan, then.plan)

    two_stage = head in ('DINOHead', 'DDQDETRHead', 'DeformableDETRHead, two-stage')
    of_queries = head in (*QUERY_BASED, *MORE_QUERY_BASED)
    assert [entry.layer for entry in records] == ['d0'] * of_queries + ['last'] + ['enc'] * two_stage
    assigner = detector.bbox_head.assigner
    for entry in records:
        if head != 'TOODHead':  # whose first epochs train by mmdet's ATSSAssigner
            expected = assigner.match_batch(entry.batch)
            torch.testing.assert_close(entry.plan, expected.plan[0])
            torch.testing.assert_close(entry.cost, expected.cost[0])
            assert (entry.plan[:, :3].sum(0) == 1).all()
        if entry.levels is not None:
            sizes = [level.shape[-2:].numel() for level in head_outputs[0][0]]
            per_position = len(entry.plan) // sum(sizes)
            counts = entry.levels.bincount().tolist()
            if head != 'SSDHead':  # with other numbers of anchors on each level
                assert counts == [per_position * size for size in sizes]
            assert len(counts) == len(sizes)
    if of_queries and ours and head != 'DDQDETRHead':
        for layer, entry in zip(head_outputs[0][0], records):
            assert torch.equal(entry.batch.scores[0], layer[0, -len(entry.plan) :])
    assert ours == (records[0].levels is not None) or of_queries or head not in ('RetinaHead', 'SSDHead')


@pytest.mark.slow
def test_an_assigner_of_mmdets_is_recorded_in_its_head_and_in_ours():
    atss = dict(type='ATSSAssigner', topk=9)
    stock, ours = detector_of('GFLHead', False, atss), detector_of('GFLHead', True, atss)
    ours.load_state_dict(stock.state_dict())
    (items,) = [items_of((3, 0))]
    for theirs, our in zip(matchings_of(stock, items), matchings_of(ours, items)):
        (theirs,), (our,) = theirs, our
        assert torch.equal(theirs.plan, our.plan) and torch.equal(theirs.levels, our.levels)
        assert theirs.cost is our.cost is None
    priors = our.batch.pred_instances(0)
    (sample,) = items_of((3,))
    gts = sample['data_samples'].gt_instances
    sizes = our.levels.bincount().tolist()
    found = stock.bbox_head.assigner.assign(InstanceData(priors=priors.priors), sizes, gts).gt_inds
    (with_gts,), _ = matchings_of(ours, items)
    assert torch.equal(with_gts.plan.argmax(1), (found - 1) % 4)


def test_a_recording_that_fails_leaves_the_assigner_as_it_was():
    detector = detector_of('GFLHead')
    with pytest.raises(RuntimeError, match='in the middle'), record(detector.bbox_head):
        raise RuntimeError('in the middle')
    assert not {'match_batch', 'assign'} & set(vars(detector.bbox_head.assigner))


@pytest.mark.slow
def test_detectors_whose_matching_cannot_be_seen_are_named():
    two_stage = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    two_stage.backbone.init_cfg = None
    detector = build(two_stage)
    assert why_not(detector).startswith('FasterRCNN has no bbox_head with an assigner')
    with pytest.raises(ValueError, match='FasterRCNN has no bbox_head with an assigner: its matching cannot be shown'):
        matchings_of(detector, items_of())
    assert why_not(detector_of('GFLHead')) is None


def test_the_rows_that_are_shown_hold_each_ground_truths_heaviest():
    plan = np.array([[0.1, 0, 0.9], [0.7, 0.1, 0.2], [0.6, 0, 0.4], [0, 0.2, 0.8], [0, 0, 1]])
    assert heaviest_rows(plan, 2).tolist() == [1, 3]
    assert heaviest_rows(plan, 4).tolist() == [1, 2, 0, 3]
    assert heaviest_rows(plan[:, 2:], 3).tolist() == [0, 1, 2]  # no ground truth


@pytest.mark.slow
@pytest.mark.parametrize('head', ['GFLHead', 'DETRHead'])
def test_a_picture_has_the_same_size_whatever_the_weights(head):
    items = items_of((3, 0))
    sizes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        matchings = matchings_of(detector_of(head), items)
        sizes.add(tuple(rendered(matching_figure(item, of[-1])).shape for item, of in zip(items, matchings)))
    assert len(sizes) == 1


def dataset_of(data, **changes):
    cfg = tiny_run(data, **changes)
    return DATASETS.build(cfg.train_dataloader.dataset), cfg


@pytest.mark.parametrize('wrapper', [None, 'RepeatDataset', 'MultiImageMixDataset'])
def test_fixed_images_are_resized_with_their_boxes_and_never_flipped(data, wrapper):
    _, cfg = dataset_of(data)
    inner = cfg.train_dataloader.dataset
    inner.pipeline.insert(2, dict(type='RandomFlip', prob=1.0))
    cfg.val_dataloader.dataset.pipeline[1].scale = (32, 32)
    if wrapper == 'RepeatDataset':
        cfg.train_dataloader.dataset = dict(type=wrapper, times=2, dataset=inner)
    elif wrapper:
        mosaic = dict(type='Mosaic', img_scale=(64, 64))
        pack = inner.pipeline.pop()
        cfg.train_dataloader.dataset = dict(type=wrapper, dataset=inner, pipeline=[mosaic, pack])
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    first, by_id, last = fixed_items(dataset, ['3.png', '3', 5], plain_pipeline(cfg))
    assert first['inputs'].shape == (3, 32, 32) and torch.equal(first['inputs'], by_id['inputs'])
    assert first['data_samples'].gt_instances.bboxes.tensor.tolist() == [[4, 4, 24, 20]]
    assert first['data_samples'].gt_instances.labels.tolist() == [3]
    assert (first['data_samples'].img_id, last['data_samples'].img_id) == (3, 5)
    expected = cv2.resize(cv2.imread(str(data / '3.png')), (32, 32))
    assert np.array_equal(first['inputs'].permute(1, 2, 0).numpy(), expected)


def test_without_validation_the_images_keep_the_size_of_training(data):
    dataset, cfg = dataset_of(data)
    without_validation(cfg).test_dataloader = None
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomFlip', prob=1.0))
    assert [step.type for step in plain_pipeline(cfg)] == ['LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs']
    (item,) = fixed_items(dataset, [2], plain_pipeline(cfg))
    assert item['data_samples'].gt_instances.bboxes.tensor.tolist() == [[8, 8, 48, 40]]


@pytest.mark.parametrize('name', ['dino/dino-4scale_r50_8xb2-12e_coco.py', 'yolox/yolox_s_8xb8-300e_coco.py'])
def test_the_pipeline_of_mmdets_configs_is_testings_with_annotations(name):
    cfg = get_config(f'mmdet::{name}')
    steps = [step['type'] for step in plain_pipeline(cfg)]
    changes = [step['type'] for step in cfg.val_dataloader.dataset.pipeline[1:-2]]
    assert steps == ['LoadImageFromFile', 'LoadAnnotations', *changes, 'PackDetInputs']


def test_images_that_the_data_set_does_not_have_are_named(data):
    dataset, cfg = dataset_of(data)
    for images, error, message in (
        ([6], ValueError, 'images: 6 is not in the data set: CocoDataset has 6 images, so that indices are 0 to 5'),
        ([-1], ValueError, 'images: -1 is not in the data set'),
        (['33.png'], ValueError, "'33.png' is neither a file name nor an image id .* did you mean '3.png'"),
        ('3.png', TypeError, 'images must be a list of indices or file names'),
        ([0.5], TypeError, 'images must be a list of indices or file names'),
    ):
        with pytest.raises(error, match=message):
            fixed_items(dataset, images, plain_pipeline(cfg))
