"""A weighted sum of other strategies' plans."""

from collections.abc import Sequence
from typing import Any, Optional, Union

from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.registry import TASK_UTILS

from .base import TransportAssigner


@TASK_UTILS.register_module()
class WeightedSumAssigner(TransportAssigner):
    """Plans of several strategies on the same costs, weighted and summed: between closest and Hungarian, say.

    Args:
        match_costs: mmdet match-cost config or list of them, for all strategies.
        strategies: Configs of assigners of ours, without ``match_costs``; ``background`` and ``background_cost`` are
            handed down where a strategy does not set them.
        weights: One number >= 0 for each strategy, not all 0. None: all 1.
        normalize: Divide by the sum of the weights, so that the row of a whole prediction still sums to 1.
        **kwargs: See :class:`TransportAssigner`.
    """

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        strategies: Sequence[dict] = (),
        weights: Optional[Sequence[float]] = None,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(match_costs, **kwargs)
        strategies = [strategies] if isinstance(strategies, dict) else list(strategies)
        weights = [1.0] * len(strategies) if weights is None else list(weights)
        if not strategies:
            raise ValueError(
                "strategies is empty: give at least one, such as dict(type='uotod_mmdet.HungarianAssigner')"
            )
        if len(weights) != len(strategies):
            raise ValueError(f'weights must hold one number for each strategy, got {weights} for {len(strategies)}')
        normalize = switch('normalize', normalize)
        weights = [number(f'weights[{index}]', weight, at_least=0) for index, weight in enumerate(weights)]
        if not sum(weights) > 0:
            raise ValueError(f'weights must not be all 0, got {weights}')
        if any('match_costs' in strategy for strategy in strategies):
            raise ValueError('strategies share the match_costs of WeightedSumAssigner: take theirs out')
        shared = dict(match_costs=match_costs, background=self.background, background_cost=self.background_cost)
        self.strategies = [_build({**shared, **strategy}) for strategy in strategies]
        self.weights = [weight / sum(weights) for weight in weights] if normalize else weights

    def _solve(self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor) -> Tensor:
        plans = (strategy.match(cost[:, :, :-1], gt_mask, gt_mass, pred_mask) for strategy in self.strategies)
        total: Any = sum(weight * plan for weight, plan in zip(self.weights, plans))
        return total


def _build(config: dict) -> TransportAssigner:
    hint = "strategies must be assigners of uotod_mmdet, which have plans: write type='uotod_mmdet....'"
    try:
        strategy = TASK_UTILS.build(config)
    except TypeError as error:
        raise TypeError(f'{config.get("type")}: {error} ({hint})') from error
    if not isinstance(strategy, TransportAssigner):
        raise TypeError(f'{hint}, got {type(strategy).__name__}')
    return strategy
