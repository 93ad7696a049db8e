"""Presets: the assigners of our configs by one word, for users who have the package alone."""

import copy

import pytest
import tiny_masks
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from test_tools import ROOT
from tiny_models import CONFIGS, MORE_POINT, MORE_QUERY_BASED, build, images_and_samples, loss_of, tiny_config

import uotod_mmdet.heads
from uotod_mmdet.assigners import PRESETS, RECOMMENDED, TransportAssigner, preset, recommended
from uotod_mmdet.registry import MODELS, TASK_UTILS

IN_CONFIGS = {
    'dense_sinkhorn': 'color_boxes/gfl_tiny_sinkhorn.py',
    'dense_sinkhorn_small': 'bccd/gfl_tiny_sinkhorn_20e.py',
    'dense_soft': 'color_boxes/gfl_tiny_soft.py',
    'anchor_sinkhorn': 'color_boxes/ssd_tiny_soft.py',
    'point_soft': 'color_boxes/rtmdet_tiny_soft.py',
    'alignment_soft': 'coco/tood_r50_fpn_1x_soft.py',
    'query_soft': 'color_boxes/dino_tiny_soft.py',
}
TRAINED = [head for head in (*CONFIGS, *MORE_POINT, *MORE_QUERY_BASED) if head in RECOMMENDED]


def fields_of(assigner: object) -> dict:
    """All that an assigner is made of, its costs included."""
    costs = [(type(cost), vars(cost)) for cost in assigner.match_costs]
    return {**vars(assigner), 'match_costs': costs, 'type': type(assigner)}


def test_each_preset_is_the_assigner_of_a_config():
    assert set(IN_CONFIGS) == set(PRESETS) == set(RECOMMENDED.values()) | {'dense_sinkhorn', 'dense_sinkhorn_small'}
    for name, path in IN_CONFIGS.items():
        cfg = Config.fromfile(ROOT / 'configs' / path).model.train_cfg.assigner
        ours = TASK_UTILS.build(dict(type=f'uotod_mmdet.{name}'))
        assert isinstance(ours, TransportAssigner)
        assert fields_of(ours) == fields_of(TASK_UTILS.build(cfg))


def test_numbers_of_the_files_of_assigners_are_those_of_the_presets():
    for path in (ROOT / 'configs/_base_/assigners').glob('*.py'):
        found = Config.fromfile(path)._cfg_dict.to_dict()
        assert found == {path.stem: dict(_delete_=True, **preset(path.stem))}


def test_arguments_override_those_of_the_preset():
    cost = dict(type='IoUCost', iou_mode='iou')
    assigner = TASK_UTILS.build(dict(type='uotod_mmdet.dense_soft', reg=0.02, hard=True, match_costs=cost))
    assert (assigner.reg, assigner.hard, len(assigner.match_costs), assigner.gt_mass) == (0.02, True, 1, 5)
    config = preset('dense_soft', gt_mass=3)
    config['match_costs'][0]['weight'] = 7.0
    assert config['gt_mass'] == 3 and PRESETS['dense_soft']['match_costs'][0]['weight'] == 1.0


def test_match_costs_of_a_base_config_stay_under_a_query_preset():
    base = Config(
        dict(model=dict(train_cfg=dict(assigner=tiny_masks.full_config('Mask2FormerHead').train_cfg.assigner)))
    )
    stock = copy.deepcopy(base.model.train_cfg.assigner.match_costs)
    base.merge_from_dict(dict(model=dict(train_cfg=dict(assigner=dict(type='uotod_mmdet.query_soft')))))
    assigner = TASK_UTILS.build(base.model.train_cfg.assigner)
    assert [type(cost).__name__ for cost in assigner.match_costs] == [cost['type'].split('.')[-1] for cost in stock]
    assert assigner.reg == 0.01


def test_config_with_a_preset_survives_its_dump(tmp_path):
    assigner = dict(_delete_=True, type='uotod_mmdet.dense_soft', reg=0.02)
    (tmp_path / 'own.py').write_text(
        f"_base_ = '{ROOT}/configs/color_boxes/gfl_tiny_atss.py'\nmodel = dict(train_cfg=dict(assigner={assigner!r}))\n"
    )
    cfg = Config.fromfile(tmp_path / 'own.py')
    cfg.dump(tmp_path / 'dump.py')
    again = Config.fromfile(tmp_path / 'dump.py')
    assert again.model == cfg.model and again.model.train_cfg.assigner == dict(type='uotod_mmdet.dense_soft', reg=0.02)
    assert TASK_UTILS.build(again.model.train_cfg.assigner).reg == 0.02


def test_each_head_of_ours_has_a_preset():
    heads = {name for name in uotod_mmdet.heads.__all__ if name in MODELS.module_dict}
    assert heads == set(RECOMMENDED)
    assert recommended('uotod_mmdet.GFLHead') == recommended('GFLHead') == 'dense_soft'


@pytest.mark.slow
@pytest.mark.parametrize('head', TRAINED)
def test_preset_trains_its_head(head):
    MessageHub.get_current_instance().update_info('epoch', 10)  # after the initial epochs of TOODHead
    model = tiny_config(head, dict(type=f'uotod_mmdet.{recommended(head)}'))
    model.bbox_head.type = f'uotod_mmdet.{model.bbox_head.type}'
    if head == 'DETRHead':  # softmax: its own costs, as over a base config
        model.train_cfg.assigner['match_costs'] = [dict(type='ClassificationCost'), dict(type='BBoxL1Cost', weight=5.0)]
    detector = build(model)
    loss = loss_of(detector, images_and_samples((3, 1), 300 if head == 'SSDHead' else 96))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in detector.bbox_head.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_assigner_without_match_costs_names_the_presets():
    for name in ('UnbalancedSinkhornAssigner', 'HungarianAssigner', 'SoftMinAssigner', 'ClosestPredictionAssigner'):
        message = (
            rf"match_costs is empty: {name} needs at least one cost, such as dict\(type='IoUCost'\). Or a preset has "
            r"costs and numbers for its heads, as type='uotod_mmdet.dense_soft': dense_sinkhorn, .*query_soft\.$"
        )
        with pytest.raises(ValueError, match=message):
            TASK_UTILS.build(dict(type=f'uotod_mmdet.{name}'))


def test_unknown_preset_is_answered_with_those_that_there_are():
    known = 'There are: dense_sinkhorn, dense_sinkhorn_small, dense_soft, anchor_sinkhorn, point_soft, alignment_soft'
    with pytest.raises(
        KeyError, match=f"'dens_soft' is not a preset of uotod_mmdet; did you mean 'dense_soft'.* {known}"
    ):
        preset('dens_soft')
    with pytest.raises(KeyError, match="did you mean 'dense_soft'.* Registered there: .*dense_soft, point_soft"):
        TASK_UTILS.build(dict(type='uotod_mmdet.dens_soft'))
    with pytest.raises(
        KeyError, match="'CenterNetHead' is not a head of uotod_mmdet with a preset.* There are: ATSSHead"
    ):
        recommended('CenterNetHead')


def test_argument_left_by_a_base_config_is_answered_with_delete():
    left = dict(type='uotod_mmdet.dense_soft', topk=9)  # of ATSSAssigner
    with pytest.raises(
        TypeError,
        match="'dense_soft' has no argument 'topk'. If the assigner of the base config left that, replace the whole of "
        r"it: assigner=dict\(_delete_=True, type='uotod_mmdet.dense_soft'\)\. It takes: match_costs, ",
    ):
        TASK_UTILS.build(left)
