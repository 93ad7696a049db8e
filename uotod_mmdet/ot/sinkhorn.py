r"""Entropic optimal transport, balanced and unbalanced, on a padded batch.

For each problem of the batch, with cost C, marginals a (rows) and b (columns), the plan minimises

.. math::
    \langle P, C\rangle - reg\,H(P) + reg_a\,KL(P1 | a) + reg_b\,KL(P^T1 | b),\qquad H(P) = -\sum P (\log P - 1)

where an infinite ``reg_a`` or ``reg_b`` turns that side's penalty into the constraint ``P1 = a`` or ``P^T1 = b``.
Both sides infinite is Sinkhorn's balanced problem (Cuturi, NeurIPS 2013); otherwise Chizat et al., Math. Comp. 2018.

The optimum is :math:`P_{ij} = \exp(f_i + g_j - C_{ij}/reg)`. Alternate maximisation of the dual updates

.. math::
    f_i = p_a (\log a_i - \log\sum_j e^{g_j - C_{ij}/reg}),\quad p_a = reg_a / (reg_a + reg)

and likewise g. Three things make it fast and safe (Schmitzer, arXiv 1610.06519; Sejourne et al., arXiv 2201.00730):

1. f and g are split into an absorbed part, inside a stored kernel, and the logarithm of scalings u and v, so that an
   iteration is two products with the kernel. Scalings that grow past what floats hold are absorbed into the kernel.
2. A problem for which even that leaves the float range does those iterations with logsumexp instead.
3. In unbalanced problems the dual is also maximised over the translation (f + t, g - t) in closed form, without which
   convergence stalls when reg is small beside reg_a and reg_b.
"""

import math
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor


class SinkhornResult(NamedTuple):
    """A plan and how far the iteration got, for each problem of the batch."""

    plan: Tensor  # (B, N, K)
    num_iter: Tensor  # (B,) iterations done
    error: Tensor  # (B,) largest error of a row or column sum, as a fraction of that row's or column's marginal
    converged: Tensor  # (B,) bool, error <= tol


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Union[float, Tensor],
    reg_a: Optional[float] = None,
    reg_b: Optional[float] = None,
    num_iter: int = 1000,
    tol: float = 1e-6,
    check_every: int = 5,
    absorb_above: Optional[float] = None,
) -> SinkhornResult:
    """Solve a batch of entropic transport problems (see the module's docstring for the problem and the method).

    Problems do not influence each other: one that has converged stops moving while its neighbours go on.

    Args:
        cost: Finite costs, (B, N, K), float32 or float64.
        a: Row marginals, (B, N), not negative. A row of zero mass (padding) gets a zero row of the plan.
        b: Column marginals, (B, K), likewise. A side that is a constraint must sum to what the other side sums to.
        reg: Weight of the entropy, > 0, in units of cost; a number or one per problem, (B,).
        reg_a: Weight of KL(P1 | a), >= 0, in units of cost. None or inf: P1 = a is a constraint.
        reg_b: Weight of KL(P^T1 | b), likewise.
        num_iter: Iterations at most.
        tol: Stop a problem at this ``error``: 1e-3 means that each row and column holds its mass up to 0.1 %.
        check_every: Iterations between two looks at the error and at the size of the scalings.
        absorb_above: Absorb scalings when the logarithm of one is above this. None: as late as the dtype allows;
            0: at every look.

    Returns:
        SinkhornResult: Plan, iterations, error, convergence.
    """
    batch, rows, columns = cost.shape
    if batch == 0 or rows == 0 or columns == 0:
        error = cost.new_zeros(batch)
        return SinkhornResult(torch.zeros_like(cost), error.long(), error, error == 0)

    reg = torch.as_tensor(reg, dtype=cost.dtype, device=cost.device).expand(batch)
    problem = _Problem(
        log_kernel=-cost / reg[:, None, None],
        log_a=a.log(),
        log_b=b.log(),
        # reg_a and reg_b in units of reg; inf on a constrained side
        rho_a=torch.full_like(reg, math.inf if reg_a is None else reg_a) / reg,
        rho_b=torch.full_like(reg, math.inf if reg_b is None else reg_b) / reg,
        unbalanced=not all(weight is None or math.isinf(weight) for weight in (reg_a, reg_b)),
    )
    # A lost entry of the kernel (underflow) and scalings at their limit together stay below float rounding.
    limit = 30.0 if cost.dtype == torch.float32 else 250.0
    absorb_above = limit / 3 if absorb_above is None else absorb_above

    # Start from zero, but for empty rows and columns, which stay out; the first step centres the kernel.
    f, g = (log.masked_fill(~log.isneginf(), 0) for log in (problem.log_a, problem.log_b))
    f, g = problem.log_steps(f, g, 1)
    done = torch.ones(batch, dtype=torch.long, device=cost.device)
    error = problem.error(f, g)
    active = (error > tol).nonzero().squeeze(1)
    state = None  # kernel and scalings of the active problems
    iteration = 1

    while len(active) and iteration < num_iter:
        steps = min(check_every, num_iter - iteration)
        iteration += steps
        part = problem if len(active) == batch else problem.select(active)
        if state is None:
            f_in, g_in = f[active], g[active]
            state = _Scaling(part.plan(f_in, g_in), f_in, g_in, torch.zeros_like(f_in), torch.zeros_like(g_in))
        state, row_error, largest = state.steps(part, steps)
        f_out, g_out = state.f + state.log_u, state.g + state.log_v

        out_of_range = ~(largest < limit)  # also where NaN
        if out_of_range.any():
            bad = out_of_range.nonzero().squeeze(1)
            sub = part.select(bad)
            f_out[bad], g_out[bad] = sub.log_steps(f[active[bad]], g[active[bad]], steps)
            row_error[bad] = sub.error(f_out[bad], g_out[bad])

        f[active], g[active], error[active] = f_out, g_out, row_error
        done[active] = iteration
        still = row_error > tol
        if out_of_range.any() or (largest >= absorb_above).any():
            state = None
        elif not still.all():
            state = state.select(still)
        active = active[still]

    return SinkhornResult(problem.plan(f, g), done, error, error <= tol)


class _Problem(NamedTuple):
    """What does not change during the iteration: -C/reg, log marginals, and reg_a / reg, reg_b / reg."""

    log_kernel: Tensor  # (B, N, K)
    log_a: Tensor  # (B, N)
    log_b: Tensor  # (B, K)
    rho_a: Tensor  # (B,)
    rho_b: Tensor  # (B,)
    unbalanced: bool

    def select(self, index: Tensor) -> '_Problem':
        return _Problem(*(tensor[index] for tensor in self[:-1]), self.unbalanced)

    def plan(self, f: Tensor, g: Tensor) -> Tensor:
        """The plan of the dual potentials f (B, N) and g (B, K)."""
        return (self.log_kernel + f[:, :, None]).add_(g[:, None, :]).exp_()

    def error(self, f: Tensor, g: Tensor) -> Tensor:
        """Largest error of the plan's sums: their distance from those at which f and g are optimal, (B,)."""
        plan = self.plan(f, g)
        return torch.maximum(self.row_error(plan.sum(2), f), self.column_error(plan.sum(1), g))

    def row_error(self, row_sums: Tensor, f: Tensor) -> Tensor:
        return _marginal_error(row_sums, self.log_a, f, self.rho_a)

    def column_error(self, column_sums: Tensor, g: Tensor) -> Tensor:
        return _marginal_error(column_sums, self.log_b, g, self.rho_b)

    def log_steps(self, f: Tensor, g: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The updates by logsumexp: slow, and safe for any finite cost."""
        for _ in range(steps):
            f = _damp(self.log_a - (self.log_kernel + g[:, None, :]).logsumexp(2), self.rho_a)
            f = f.masked_fill(self.log_a.isneginf(), -math.inf)
            g = _damp(self.log_b - (self.log_kernel + f[:, :, None]).logsumexp(1), self.rho_b)
            g = g.masked_fill(self.log_b.isneginf(), -math.inf)
        if self.unbalanced:
            shift = self.translation(f, g)
            f, g = f + shift, g - shift
        return f, g

    def translation(self, f: Tensor, g: Tensor) -> Tensor:
        """The t that maximises the dual of (f + t, g - t), (B, 1) (Sejourne et al., proposition 2)."""
        total = 1 / (1 / self.rho_a + 1 / self.rho_b)
        mass_a = (self.log_a - _ratio(f, self.rho_a)).logsumexp(1)
        mass_b = (self.log_b - _ratio(g, self.rho_b)).logsumexp(1)
        return torch.where(total.isinf(), 0, total * (mass_a - mass_b))[:, None]


class _Scaling(NamedTuple):
    """The iteration on a kernel that holds the potentials f and g; log_u and log_v are what came on top of them."""

    kernel: Tensor  # (B, N, K) exp(-C/reg + f + g)
    f: Tensor  # (B, N)
    g: Tensor  # (B, K)
    log_u: Tensor  # (B, N)
    log_v: Tensor  # (B, K)

    def select(self, index: Tensor) -> '_Scaling':
        return _Scaling(*(tensor[index] for tensor in self))

    def steps(self, problem: _Problem, steps: int) -> tuple['_Scaling', Tensor, Tensor]:
        """Iterate; returns the new state, the error (B,) and the largest |log u| or |log v| seen (B,)."""
        kernel, f, g, log_u, log_v = self
        transposed = kernel.transpose(1, 2)
        empty_a, empty_b = problem.log_a.isneginf(), problem.log_b.isneginf()
        log_v = log_v.masked_fill(empty_b, 0)  # their kernel columns are zero
        product = torch.bmm(kernel, log_v.exp()[:, :, None])[:, :, 0]
        for _ in range(steps):
            f_new = _damp(problem.log_a - product.log() + f, problem.rho_a)
            log_u = (f_new - f).masked_fill(empty_a, 0)
            product = torch.bmm(transposed, log_u.exp()[:, :, None])[:, :, 0]
            g_new = _damp(problem.log_b - product.log() + g, problem.rho_b)
            log_v = (g_new - g).masked_fill(empty_b, 0)
            column_sums = log_v.exp() * product
            product = torch.bmm(kernel, log_v.exp()[:, :, None])[:, :, 0]
        row_sums = log_u.exp() * product
        if problem.unbalanced:  # changes no sum, only the potentials
            shift = problem.translation(f + log_u, g + log_v)
            log_u, log_v = log_u + shift, log_v - shift
        error = torch.maximum(problem.row_error(row_sums, f + log_u), problem.column_error(column_sums, g + log_v))
        largest = torch.maximum(log_u.abs().amax(1), log_v.abs().amax(1))
        return _Scaling(kernel, f, g, log_u, log_v), error, largest


def _damp(potential: Tensor, rho: Tensor) -> Tensor:
    """rho / (rho + 1) * potential, for (B, n) and (B,); the potential itself where rho is inf."""
    return potential * torch.where(rho.isinf(), 1, rho / (rho + 1))[:, None]


def _ratio(potential: Tensor, rho: Tensor) -> Tensor:
    """potential / rho; 0 where rho is inf or 0 (the potential is 0 then), and on empty rows or columns."""
    skip = potential.isinf() | (rho.isinf() | (rho == 0))[:, None]
    return torch.where(skip, 0, potential / rho[:, None])


def _marginal_error(sums: Tensor, log_marginal: Tensor, potential: Tensor, rho: Tensor) -> Tensor:
    """Largest distance of sums from the marginal (a constraint) or marginal * exp(-potential / rho) (a penalty).

    As a fraction of the marginal: that of one prediction among thousands counts as much as that of one among ten.
    """
    target = (log_marginal - _ratio(potential, rho)).exp()
    error = ((sums - target).abs() * (-log_marginal).exp()).masked_fill(log_marginal.isneginf(), 0).amax(1)
    return torch.where(rho == 0, 0, error)
