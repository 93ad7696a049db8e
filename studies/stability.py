# Does the matching of a DETR that learns from a soft plan change less from epoch to epoch? Tiny two-stage Deformable
# DETR without denoising queries, as in convergence.py, with MatchingStabilityHook on 32 training images: `instability`
# counts the queries of the last decoder layer whose ground truth changed (DN-DETR), `plan_change` the mass that moved.
title = 'Stability of the matching'
question = 'How many queries of an image get another ground truth from one epoch to the next?'

_soft = 'configs/color_boxes/deformable_detr_tiny_soft.py'
_stability = dict(type='uotod_mmdet.MatchingStabilityHook', images=32)
_hardens = dict(
    type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.02, stop=0.0005, mode='exponential', end=6
)
arms = {
    'Hungarian': dict(
        config='configs/color_boxes/deformable_detr_tiny_hungarian.py', options=dict(custom_hooks=[_stability])
    ),
    'balanced OT, reg 0.02': dict(config=_soft, options=dict(custom_hooks=[_stability])),
    'balanced OT that hardens': dict(config=_soft, options=dict(custom_hooks=[_hardens, _stability])),
}
baseline = 'Hungarian'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AR']
curves = ['instability/last', 'plan_change/last']
