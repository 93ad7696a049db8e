"""Entropic optimal transport: the iteration as an op. The method is explained in :mod:`uotod_mmdet.ot.sinkhorn`."""

import math
import warnings
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from . import deferred, native
from .native import Kernel
from .newton import newton
from .registration import Op
from .transport_problem import Problem, check_values, choose

NEWTON_COLUMNS = 128
"""Problems with more columns do without Newton's method, whose steps grow with the square of their number."""

STEPS_UNREAD, NEWTON_STEPS_UNREAD = 20, 30
"""Largest number of iterations before Newton's method, and of its steps, where the error is not read."""

STEPS_FOR_NEWTON = 20
"""Iterations of the kernel for GPUs, which has no Newton's method, in place of each that ``num_iter`` allows."""

GPU_COLUMNS = 2048
"""Problems with more columns do without the kernel for GPUs."""

KERNEL = Kernel(
    'uotod_sinkhorn',
    'cost: f32[B N K], a: f32[B N], b: f32[B K], reg: f64[B], rho_a: f64[B], rho_b: f64[B], relative: int, B, N, K, '
    'num_iter: int, check_every: int, newton_after: int, tol: float, absorb_above: float, scale: f32[B], '
    'plan: f32[B N K], f: f64[B N], g: f64[B K], done: i64[B], error: f64[B]',
)


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    rho_a: Tensor,
    rho_b: Tensor,
    scale: Tensor,
    relative: bool,
    num_iter: int,
    check_every: int,
    newton_after: int,
    tol: float,
    absorb_above: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve a batch of entropic transport problems; :func:`uotod_mmdet.ot.sinkhorn` explains and checks the arguments.

    Args:
        cost: (B, N, K), float32 or float64.
        a: Row marginals, (B, N), in the dtype of ``cost``.
        b: Column marginals, (B, K), likewise.
        reg: Weight of the entropy, float64, (B,).
        rho_a: Weight of the rows' marginal in units of ``reg``, inf for a constraint, float64, (B,).
        rho_b: Weight of the columns' marginal, likewise.
        scale: Factor of the plan that is returned, (B,), in the dtype of ``cost``.
        relative: Whether ``reg`` is in units of a problem's largest absolute cost.
        num_iter, check_every, tol, absorb_above: See :func:`uotod_mmdet.ot.sinkhorn`.
        newton_after: Iterations before Newton's method; negative: never.

    Returns:
        Plan (B, N, K), potentials f (B, N) and g (B, K) in units of ``reg``, float64, -inf where a side is empty,
        iterations done (B,), int64, and error (B,), float64.
    """
    arguments = cost, a, b, reg, rho_a, rho_b, scale, relative, num_iter, check_every, newton_after, tol, absorb_above
    learnt = torch.is_grad_enabled() and (cost.requires_grad or a.requires_grad or b.requires_grad)
    if learnt or deferred.is_transformed():
        return sinkhorn_reference(*arguments)
    return sinkhorn_op(*arguments)


@Op
def sinkhorn_op(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    rho_a: Tensor,
    rho_b: Tensor,
    scale: Tensor,
    relative: bool,
    num_iter: int,
    check_every: int,
    newton_after: int,
    tol: float,
    absorb_above: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`sinkhorn` without gradient."""
    problem = dict(cost=cost, a=a, b=b, reg=reg, rho_a=rho_a, rho_b=rho_b, scale=scale)
    options = dict(num_iter=num_iter, check_every=check_every, newton_after=newton_after, relative=relative)
    solve = KERNEL.bind(**problem)
    if solve is not None:
        outputs = empty_outputs(cost)
        named = dict(zip(('plan', 'f', 'g', 'done', 'error'), outputs))
        if solve(**options, tol=tol, absorb_above=absorb_above, **named) == 0:
            return outputs
    if cost.is_cuda and native.has_triton and cost.size(2) <= GPU_COLUMNS:
        found = _by_triton(problem, relative, num_iter, check_every, newton_after, tol)
        if found is not None:
            return found
    return sinkhorn_reference(
        cost, a, b, reg, rho_a, rho_b, scale, relative, num_iter, check_every, newton_after, tol, absorb_above
    )


def empty_outputs(cost: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors like the outputs of :func:`sinkhorn`."""
    batch, rows, columns = cost.shape
    plan = cost.new_empty(batch, rows, columns)
    f, g, error = (cost.new_empty(shape, dtype=torch.float64) for shape in ((batch, rows), (batch, columns), (batch,)))
    return plan, f, g, cost.new_empty(batch, dtype=torch.long), error


sinkhorn_op.register_fake(empty_outputs)


def _by_triton(
    problem: dict[str, Tensor], relative: bool, num_iter: int, check_every: int, newton_after: int, tol: float
) -> Optional[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """:func:`sinkhorn` by the kernel for GPUs, which extrapolates where Newton's method would take over.

    None, with a warning, where Triton cannot compile the kernel: it needs a C compiler.
    """
    cost = problem['cost']
    if relative:
        problem = dict(problem, reg=problem['reg'] * largest_cost(cost))
    check_values(*(problem[name] for name in ('cost', 'a', 'b', 'reg', 'rho_a', 'rho_b')))
    if iterations_before_newton(cost, num_iter, newton_after, True) < num_iter:
        num_iter *= STEPS_FOR_NEWTON
    try:
        from .sinkhorn_on_gpu import solve

        return solve(**problem, num_iter=num_iter, check_every=check_every, tol=tol)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of many types, by version
        native.has_triton = False
        warnings.warn(
            f'uotod_mmdet: Triton cannot compile the kernel of Sinkhorn ({type(error).__name__}: {error}), so torch '
            'computes the same, many times more slowly. Triton needs a C compiler; UOTOD_NATIVE=0 hides this.',
            stacklevel=2,
        )
        return None


def sinkhorn_reference(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    rho_a: Tensor,
    rho_b: Tensor,
    scale: Tensor,
    relative: bool,
    num_iter: int,
    check_every: int,
    newton_after: int,
    tol: float,
    absorb_above: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`sinkhorn` in torch.

    One loop with two ways to stop. Where the error may be read, the loop ends when all problems have converged, and
    logsumexp serves only where scalings leave the range of the dtype. On a GPU nothing is read: every choice is made on
    the device, the number of iterations is fixed, and each block of ``check_every`` iterations begins with one update
    by logsumexp, which is always safe; its updates by scalings count only where these stayed in range.
    """
    read = deferred.host_may_wait(cost)
    if relative:
        reg = reg * largest_cost(cost)
    check_values(cost, a, b, reg, rho_a, rho_b)
    problem = Problem.of(cost, a, b, reg, rho_a, rho_b, read)
    limit = 30.0 if cost.dtype == torch.float32 else 250.0
    f, g = problem.start()
    error, done = torch.full_like(reg, math.inf), torch.zeros_like(reg, dtype=torch.long)
    first = iterations_before_newton(cost, num_iter, newton_after, read)
    state, iteration = None, 0
    while iteration < first and not (read and (error <= tol).all()):
        steps = min(check_every, first - iteration)
        iteration += steps
        moving = ~(error <= tol)
        if not read:
            safe = problem.log_steps(f, g, 1)
            largest = problem.largest(safe[0] - f, safe[1] - g)  # known, too, where the scalings leave their range
            (f, g), error = choose(moving, safe, (f, g)), torch.where(moving, largest, error)
            state = None
        state = problem.scaling(f, g) if state is None else state
        state, changes, scalings = state.steps(problem, steps if read else max(steps - 1, 1))
        new: Sequence[Tensor] = state.potentials()
        held = (scalings < limit) & changes.isfinite()  # not where a sum is too small for the dtype, or NaN
        if read:
            absorb = not (scalings < absorb_above).all()
            if not held.all():
                new = choose(held, new, problem.log_steps(f, g, steps))
                changes = torch.where(held, changes, problem.error(*new))
                held = torch.ones_like(held)
            state = None if absorb else state
        f, g = choose(moving & held, new, (f, g))
        error, done = torch.where(moving & held, changes, error), torch.where(moving, iteration, done)
    plan = problem.plan(f, g)
    if first < num_iter and not (read and (error <= tol).all()):
        steps = num_iter - first if read else min(num_iter - first, NEWTON_STEPS_UNREAD)
        before = error <= tol  # what has converged must not depend on its neighbours in the batch
        new_plan, new_f, new_g, more, new_error = newton(problem, g, steps, tol, read)
        plan, f, g, error = choose(before, (plan, f, g, error), (new_plan, new_f, new_g, new_error))
        done = torch.where(before, done, done + more)
    return plan * scale[:, None, None], f, g, done, error


def iterations_before_newton(cost: Tensor, num_iter: int, newton_after: int, read: bool) -> int:
    """Iterations before Newton's method; ``num_iter`` where that method is not used."""
    if newton_after < 0 or cost.size(2) > NEWTON_COLUMNS:
        return num_iter
    return min(num_iter, newton_after if read else min(newton_after, STEPS_UNREAD))


def largest_cost(cost: Tensor) -> Tensor:
    """Largest absolute cost of each problem, 1 where all are 0, float64, (B,)."""
    largest = torch.maximum(cost.amax((1, 2)), -cost.amin((1, 2))).double()
    return torch.where(largest > 0, largest, 1)
