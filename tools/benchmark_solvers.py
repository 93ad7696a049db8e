"""Benchmark of the Sinkhorn solvers against POT's batch solver and uotod's formula."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from benchmark_measure import Calls, compare
from torch import Tensor

from uotod_mmdet.ot import sinkhorn


def transport_problem(batch: int, preds: int, gts: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Costs with a background column, largest about 1, and their marginals, each summing to 1."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, preds, gts + 1, generator=generator)
    cost[:, :, -1] = 0.5
    a = torch.full((batch, preds), 1 / preds)
    b = torch.full((batch, gts + 1), 1 / preds)
    b[:, -1] = (preds - gts) / preds
    return cost.to(device), a.to(device), b.to(device)


def uotod_unbalanced(cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_a: float, reg_b: float, steps: int) -> Tensor:
    """uotod's formula: a fixed number of iterations on the kernel."""
    kernel = (-cost / reg).exp()
    u, v = torch.ones_like(a), torch.ones_like(b)
    for _ in range(steps):
        u = (a / (kernel @ v[:, :, None])[:, :, 0]) ** (reg_a / (reg_a + reg))
        v = (b / (kernel.transpose(1, 2) @ u[:, :, None])[:, :, 0]) ** (reg_b / (reg_b + reg))
    return u[:, :, None] * kernel * v[:, None]


def first_below(bound: float, error: Callable[[Tensor], float], solve: Callable, settings: list) -> object:
    """The first of the settings, from loose to strict, whose solution keeps the bound."""
    for setting in settings:
        if error(solve(setting)) <= bound:
            return setting
    raise SystemExit(f'{solve} does not reach an error of {bound}')


def solvers(args: argparse.Namespace) -> None:
    """Sinkhorn to an error of 1e-3, against POT's batch solver and uotod's formula."""
    from ot.batch import solve_batch

    tolerances = [scale * 10.0**power for power in range(-1, -8, -1) for scale in (5, 2, 1)]
    reg_a, reg_b = 1.0, 0.1
    for shape in ((48, 300, 30), (16, 900, 50), (4, 8732, 20)):
        for reg in (0.05, 0.01):
            cost, a, b = transport_problem(*shape, args.device)

            def pot(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                options = dict(method='log_sinkhorn', grad='detach', max_iter=20000)
                return solve_batch(cost, reg, a=a, b=b, tol=tol, **options).plan

            def own(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return sinkhorn(cost, a, b, reg, num_iter=5000, tol=tol).plan

            def marginal_error(plan: Tensor, a=a, b=b) -> float:
                return ((plan.sum(2) - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)).max().item()

            calls: Calls = {}
            for name, solve in (("POT's batch solver", pot), ('ours', own)):
                calls[name] = partial(solve, first_below(1e-3, marginal_error, solve, tolerances))
            compare(f'Balanced, {shape}, reg {reg}, L1 error of the marginals <= 1e-3', calls, args)

            best = sinkhorn(cost.double(), a, b, reg, reg_a, reg_b, num_iter=20000, tol=1e-10).plan

            def uotod(steps: int, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return uotod_unbalanced(cost, a, b, reg, reg_a, reg_b, steps)

            def own_unbalanced(tol: float, cost=cost, a=a, b=b, reg=reg) -> Tensor:
                return sinkhorn(cost, a, b, reg, reg_a, reg_b, num_iter=5000, tol=tol).plan

            def distance(plan: Tensor, best=best) -> float:
                return (plan - best).abs().sum((1, 2)).max().item()

            steps = first_below(1e-3, distance, uotod, [2, 5, *range(10, 2000, 10)])
            tol = first_below(1e-3, distance, own_unbalanced, tolerances)
            calls = {
                f"uotod's formula, {steps} iterations": partial(uotod, steps),
                'ours': partial(own_unbalanced, tol),
            }
            compare(f'Unbalanced, {shape}, reg {reg}, L1 distance from the optimum <= 1e-3', calls, args)
