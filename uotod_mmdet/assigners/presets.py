"""Presets: the recommended assigner of each head by one word, ``assigner=dict(type='uotod_mmdet.dense_soft')``.

A preset is an assigner with all its numbers; ``preset('dense_soft')`` gives its config. Arguments beside ``type``
override them, such as ``reg=0.02`` or ``hard=True``. ``RECOMMENDED`` names the preset to start from of each head.
"""

import copy
import difflib
from collections.abc import Iterable
from typing import Any

from mmdet.models.task_modules.assigners import BaseAssigner

from uotod_mmdet.registry import TASK_UTILS, keyword_names

_OVERLAP_AND_CENTER = [
    dict(type='IoUCost', iou_mode='giou', weight=1.0),
    dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
    dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
]

PRESETS: dict[str, dict[str, Any]] = dict(
    dense_sinkhorn=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        box_source='priors',
        match_costs=_OVERLAP_AND_CENTER,
        gt_mass=9,  # about nine anchors a ground truth, fewer where few have their centre inside it
        reg=0.1,
        reg_pred=None,
        reg_target=1.0,
        background_cost=0.0,
        normalize_cost=False,
        tol=0.05,
    ),
    dense_sinkhorn_small=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        box_source='priors',
        match_costs=[
            dict(type='uotod_mmdet.LogIoUCost', weight=0.5),
            dict(type='uotod_mmdet.PriorCenterCost', weight=1.0),
            dict(type='uotod_mmdet.InsideGTCost', weight=20.0),
        ],
        gt_mass=9,
        reg=0.1,
        reg_pred=None,
        reg_target=2.0,
        background_cost=1.2,  # what an anchor of IoU 0.09 with its centre in place costs
        normalize_cost=False,
        tol=0.05,
    ),
    dense_soft=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        box_source='priors',
        match_costs=[*_OVERLAP_AND_CENTER, dict(type='FocalLossCost', weight=1.0)],
        gt_mass=5,
        reg=0.03,
        reg_pred=None,
        reg_target=10.0,
        normalize_cost=False,
        tol=0.05,
    ),
    anchor_sinkhorn=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        box_source='priors',
        match_costs=dict(type='IoUCost', iou_mode='iou'),
        background_cost=-0.5,  # the cost is -IoU
        reg=0.02,
        reg_pred=1e3,
        reg_target=1e-2,
        normalize_cost=False,
    ),
    point_soft=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        match_costs=[
            dict(type='uotod_mmdet.SoftLabelCost', weight=1.0),
            dict(type='uotod_mmdet.LogIoUCost', weight=3.0),
            dict(type='uotod_mmdet.SoftCenterCost', weight=1.0),
            dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
        ],
        gt_mass=5,
        reg=0.1,
        reg_pred=None,
        reg_target=100.0,
        normalize_cost=False,
        tol=0.05,
    ),
    alignment_soft=dict(
        type='uotod_mmdet.UnbalancedSinkhornAssigner',
        match_costs=[
            dict(type='uotod_mmdet.TaskAlignmentCost', alpha=1.0, beta=6.0),
            dict(type='uotod_mmdet.InsideGTCost', weight=200.0),
        ],
        gt_mass=13,  # what mmdet's TaskAlignedAssigner gives a ground truth
        reg=0.1,
        reg_pred=None,
        reg_target=100.0,
        normalize_cost=False,
        tol=0.05,
    ),
    query_soft=dict(
        type='uotod_mmdet.BalancedSinkhornAssigner',
        match_costs=[
            dict(type='FocalLossCost', weight=2.0),
            dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=2.0),
        ],
        reg=0.01,
    ),
)
"""Type and arguments of each preset."""

RECOMMENDED: dict[str, str] = dict(
    **dict.fromkeys(('ATSSHead', 'GFLHead', 'RetinaHead', 'VFNetHead'), 'dense_soft'),
    SSDHead='anchor_sinkhorn',
    **dict.fromkeys(('FCOSHead', 'RTMDetHead', 'RTMDetInsHead', 'RTMDetInsSepBNHead', 'RTMDetSepBNHead'), 'point_soft'),
    YOLOXHead='point_soft',
    TOODHead='alignment_soft',
    **dict.fromkeys(('ConditionalDETRHead', 'DABDETRHead', 'DDQDETRHead', 'DETRHead', 'DINOHead'), 'query_soft'),
    **dict.fromkeys(('DeformableDETRHead', 'GroundingDINOHead', 'Mask2FormerHead', 'MaskFormerHead'), 'query_soft'),
)
"""The preset to start from of each head of ours that trains on the whole plan."""


def preset(name: str, **overrides: Any) -> dict[str, Any]:
    """The config of a preset, for Python and for configs that want to show the numbers.

    Args:
        name: A key of ``PRESETS``.
        **overrides: Arguments in place of the preset's, such as ``reg=0.02``.

    Raises:
        KeyError: If there is no such preset; the message names those that there are.
    """
    return copy.deepcopy({**PRESETS[_known(name, PRESETS, 'a preset of uotod_mmdet')], **overrides})


def recommended(head: str) -> str:
    """The preset to start from of a head, such as 'dense_soft' of 'GFLHead'.

    Raises:
        KeyError: If it is none of our heads; the message names those.
    """
    return RECOMMENDED[_known(head.rsplit('.', 1)[-1], RECOMMENDED, 'a head of uotod_mmdet with a preset')]


def how_to_name() -> str:
    """A sentence that names all presets, for errors."""
    return f"a preset has costs and numbers for its heads, as type='uotod_mmdet.dense_soft': {', '.join(PRESETS)}."


def _known(name: str, names: Iterable[str], what: str) -> str:
    names = list(names)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f'; did you mean {close[0]!r}?' if close else '.'
        raise KeyError(f'{name!r} is not {what}{hint} There are: {", ".join(names)}.')
    return name


def _build(name: str, overrides: dict[str, Any]) -> BaseAssigner:
    """The assigner of a preset.

    Raises:
        TypeError: For an argument that the assigner does not have, likely one that a base config's assigner left.
    """
    config = preset(name, **overrides)
    known = keyword_names(TASK_UTILS.get(config['type'])) or []
    for key in overrides:
        if key not in known:
            raise TypeError(
                f'The preset {name!r} has no argument {key!r}. If the assigner of the base config left that, replace '
                f"the whole of it: assigner=dict(_delete_=True, type='uotod_mmdet.{name}'). It takes: "
                f'{", ".join(known)}.'
            )
    return TASK_UTILS.build(config)


@TASK_UTILS.register_module()
def dense_sinkhorn(**overrides: Any) -> BaseAssigner:
    """Preset for mmdet's heads that regress from inside the box (GFL, VFNet, ATSS) and read the plan hard.

    Unbalanced transport on overlap, centre distance, and a large constant for anchors outside the box.
    """
    return _build('dense_sinkhorn', overrides)


@TASK_UTILS.register_module()
def dense_sinkhorn_small(**overrides: Any) -> BaseAssigner:
    """:func:`dense_sinkhorn` for data in which some objects are far smaller than the smallest anchors (COCO, BCCD).

    -log IoU keeps them on the finest level, where GIoU hardly tells one level from the next.
    """
    return _build('dense_sinkhorn_small', overrides)


@TASK_UTILS.register_module()
def dense_soft(**overrides: Any) -> BaseAssigner:
    """Preset for soft training of dense heads with anchors: GFLHead, VFNetHead, ATSSHead, RetinaHead.

    Unbalanced transport on the costs of :func:`dense_sinkhorn` and the predicted class; a small ``reg``, for a plan
    that is soft at its edges only; a large ``reg_target``, so that each ground truth gets its five anchors' worth
    wherever anchors have their centre inside it.
    """
    return _build('dense_soft', overrides)


@TASK_UTILS.register_module()
def anchor_sinkhorn(**overrides: Any) -> BaseAssigner:
    """Preset for heads that regress from anchors (SSDHead; RetinaNet by its stock rule).

    Unbalanced transport of each anchor to its best ground truth, or to the background below IoU 0.5.
    """
    return _build('anchor_sinkhorn', overrides)


@TASK_UTILS.register_module()
def point_soft(**overrides: Any) -> BaseAssigner:
    """Preset for soft training of heads of points: RTMDet's, YOLOXHead, FCOSHead.

    Unbalanced transport on the costs that mmdet's DynamicSoftLabelAssigner minimises, with the whole plan in place of
    its best k; each ground truth gets five predictions' worth.
    """
    return _build('point_soft', overrides)


@TASK_UTILS.register_module()
def alignment_soft(**overrides: Any) -> BaseAssigner:
    """Preset for soft training of TOODHead: unbalanced transport of task alignment inside the boxes."""
    return _build('alignment_soft', overrides)


@TASK_UTILS.register_module()
def query_soft(**overrides: Any) -> BaseAssigner:
    """Preset for soft training of the DETR family, and of MaskFormer's heads.

    Balanced transport with one prediction's worth for a ground truth. Over a base config its match costs stay those of
    the base, which DETR (softmax), Grounding DINO and mask heads need; its own are those of sigmoid heads such as
    DINOHead. Without NMS the plan must end hard, by a hook: ``dict(type='uotod_mmdet.AssignerScheduleHook',
    param='reg', start=0.01, stop=0.001, mode='exponential')`` in ``custom_hooks``.
    """
    return _build('query_soft', overrides)
