# Does the matching of a DETR that learns from a soft plan change less from epoch to epoch? Tiny Deformable DETR without
# denoising queries, as in convergence.py, with MatchingStabilityHook on 32 training images: `instability` counts the
# queries of the last decoder layer whose ground truth changed (DN-DETR), `plan_change` the mass that moved. With one
# stage a query is the same from epoch to epoch; with two, the n-th best proposal, so that its place changes, too.
title = 'Stability of the matching'
question = 'How many queries of an image get another ground truth from one epoch to the next?'

_stability = dict(type='uotod_mmdet.MatchingStabilityHook', images=32)
_hardens = dict(
    type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.02, stop=0.0005, mode='exponential', end=6
)


def _arm(config, hooks, one_stage):
    options = dict(custom_hooks=[*hooks, _stability])
    if one_stage:
        options['model.as_two_stage'] = False
    return dict(
        config=f'configs/color_boxes/deformable_detr_tiny_{config}.py',
        options=options,
        baseline='one stage, Hungarian' if one_stage else 'Hungarian',
    )


arms = {
    'one stage, Hungarian': _arm('hungarian', [], True),
    'one stage, balanced OT that hardens': _arm('soft', [_hardens], True),
    'Hungarian': _arm('hungarian', [], False),
    'balanced OT, reg 0.02': _arm('soft', [], False),
    'balanced OT that hardens': _arm('soft', [_hardens], False),
}
baseline = 'one stage, Hungarian'
data = dict(color_boxes=dict())
seeds = [0, 1, 2]
metrics = ['AP', 'AP50', 'AR']
curves = ['instability/last', 'plan_change/last']
