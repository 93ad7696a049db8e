"""Newton's method on the semi-dual of entropic transport problems, in torch.

With the best f for each g the dual is a concave function of the few g (Brauer et al., arXiv 1710.06635).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .transport_problem import Problem, choose, ratio


class SemiDual(NamedTuple):
    """The dual as a function of g alone, f being the best for it."""

    f: Tensor  # (B, N)
    value: Tensor  # (B,) of the dual
    plan: Tensor  # (B, N, K) in the precision of the cost
    rows: Tensor  # (B, N) its row sums
    sums: Tensor  # (B, K) its column sums


def newton(
    problem: Problem, g: Tensor, num_steps: int, tol: float, read: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maximise the semi-dual from g.

    A step is cut to a radius that grows while steps raise the dual and shrinks when a step does not. A step that does
    not raise the dual is followed by an update of g by Sinkhorn, which always does: at once where values may be read.

    Args:
        problem: B problems; one that has converged stops moving.
        g: First potentials of the columns, (B, K).
        num_steps: Largest number of steps.
        tol: See :func:`uotod_mmdet.ot.sinkhorn`.
        read: Whether the error may be read, to stop as soon as all problems have converged.

    Returns:
        Plan (B, N, K), f (B, N), g (B, K), steps done (B,), error (B,).
    """
    state, slack = semi_dual(problem, g), 10 * torch.finfo(problem.dtype).eps
    radius = torch.full_like(problem.rho_a, 4.0)
    last_good, done = radius > 0, torch.zeros_like(radius, dtype=torch.long)
    for step in range(num_steps + 1):
        sinkhorn_g = problem.new_g(g - log_column_sums(problem, state, g, read))
        error = problem.largest(torch.zeros_like(state.f), sinkhorn_g - g)
        moving = ~(error <= tol)
        if step == num_steps or (read and not moving.any()):
            break
        change = newton_step(problem, state, g)
        change = torch.maximum(torch.minimum(change, radius[:, None]), -radius[:, None])
        (trial,) = choose(last_good, (g + change,), (sinkhorn_g,))
        new_state = semi_dual(problem, trial)
        good = ~last_good | (new_state.value >= state.value - slack * state.value.abs())  # False where NaN, too
        radius = torch.where(good, 4 * radius, (radius / 8).clamp(min=0.1))
        if read and not good.all():
            (trial,) = choose(good, (trial,), (sinkhorn_g,))
            new_state, good = semi_dual(problem, trial), torch.ones_like(good)
        g, *fields = choose(moving & good, (trial, *new_state), (g, *state))
        state = SemiDual(*fields)
        last_good, done = good, torch.where(moving, done + 1, done)
    return state.plan, state.f, g, done, error


def semi_dual(problem: Problem, g: Tensor) -> SemiDual:
    """The best f for g, and what follows from it."""
    log_plan = problem.log_kernel + g[:, None, :]
    peak = log_plan.detach().amax(2).clamp(min=-1e300)
    plan = log_plan.sub_(peak[:, :, None]).to(problem.dtype).exp_()
    total = plan.sum(2).double()
    log_sums = peak + total.log()
    empty = problem.log_a.isneginf()
    f = problem.new_f(-log_sums).masked_fill(empty, -torch.inf)
    rows = (f + log_sums).exp().masked_fill(empty, 0)
    # Not in place, as exp keeps its result for the gradient.
    plan = plan * (rows / total).nan_to_num(0).to(problem.dtype)[:, :, None]
    rewards = _reward(f, problem.log_a, problem.rho_a) + _reward(g, problem.log_b, problem.rho_b)
    # The sum of a column that all rows avoid may underflow: this upper bound keeps Newton's step finite.
    sums = plan.sum(1).double().clamp(min=torch.finfo(problem.dtype).tiny)
    return SemiDual(f, rewards - rows.sum(1), plan, rows, sums)


def log_column_sums(problem: Problem, state: SemiDual, g: Tensor, read: bool) -> Tensor:
    """Logarithms of the plan's column sums, (B, K), also of those that underflow."""
    log_sums = state.sums.log()
    small = (state.sums <= torch.finfo(problem.dtype).tiny) & ~problem.log_b.isneginf()
    if read and not small.any():
        return log_sums
    return torch.where(small, (problem.log_kernel + state.f[:, :, None]).logsumexp(1) + g, log_sums)


def newton_step(problem: Problem, state: SemiDual, g: Tensor) -> Tensor:
    """Newton's step of g, (B, K)."""
    rho_a, rho_b, empty = problem.rho_a, problem.rho_b, problem.log_b.isneginf()
    wanted = (problem.log_b - ratio(g, rho_b)).exp()
    curvature = state.sums + torch.where(rho_b.isinf()[:, None], 0, wanted / rho_b[:, None])
    share = (1 - 1 / (rho_a + 1))[:, None] / torch.where(state.rows > 0, state.rows, 1)
    weighted = state.plan * share.to(problem.dtype)[:, :, None]
    hessian = torch.bmm(weighted.transpose(1, 2), state.plan).double().neg_()
    # The dual of a balanced problem does not change along (1, ..., 1): one rank more keeps the step off that.
    balanced = (rho_a.isinf() & rho_b.isinf())[:, None]
    hessian += state.sums[:, :, None] * (balanced * state.sums / state.sums.sum(1, keepdim=True))[:, None, :]
    rounding = torch.finfo(problem.dtype).eps
    diagonal = curvature * (1 + rounding) + rounding * 1e-3 * curvature.amax(1, keepdim=True)
    hessian.diagonal(dim1=1, dim2=2).add_(torch.where(empty, 1, diagonal))
    gradient = (wanted - state.sums).masked_fill(empty, 0)
    step = torch.linalg.solve_ex(hessian, gradient)[0]
    return torch.where(step.isfinite(), step, gradient / curvature).masked_fill(empty, 0)


def _reward(potential: Tensor, log_mass: Tensor, rho: Tensor) -> Tensor:
    """What a side adds to the dual, (B,): its mass times the potential, or where rho is finite, less than that."""
    mass = log_mass.exp()
    kept = torch.where(mass > 0, mass * potential, 0).sum(1)
    penalised = -rho * torch.where(mass > 0, mass * torch.expm1(-ratio(potential, rho)), 0).sum(1)
    return torch.where(rho.isinf(), kept, torch.where(rho == 0, 0, penalised))
