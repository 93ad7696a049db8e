"""Entropic transport problems in torch: updates of the dual potentials, by scalings of a kernel or by logsumexp.

The method is explained in :mod:`uotod_mmdet.ot.sinkhorn`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .deferred import act_if

EXACT_BELOW = 128.0
"""Largest cost in units of reg whose rounding in float32 changes the plan by less than 1e-5 of itself."""

PRECISE_BELOW = 1e12
"""Largest cost in units of reg whose rounding in float64 changes the plan by less than 1e-3 of itself."""


class Problem(NamedTuple):
    """What does not change during the iteration: B problems of N rows and K columns."""

    log_kernel: Tensor  # (B, N, K) -C/reg, in the precision of the cost or in float64
    log_a: Tensor  # (B, N)
    log_b: Tensor  # (B, K)
    rho_a: Tensor  # (B,) reg_a / reg, inf for a constraint
    rho_b: Tensor  # (B,) reg_b / reg
    dtype: torch.dtype  # of the cost

    @staticmethod
    def of(cost: Tensor, a: Tensor, b: Tensor, reg: Tensor, rho_a: Tensor, rho_b: Tensor, read: bool) -> 'Problem':
        """The problem of a cost; ``read``: whether values may be read to choose the precision of the exponents."""
        log_kernel = cost / -reg.to(cost.dtype)[:, None, None]
        # Where costs are not many times reg, their own precision is enough for the exponents, too.
        if cost.dtype != torch.float64 and not (read and log_kernel.abs().amax() < EXACT_BELOW):
            log_kernel = cost.double() / -reg[:, None, None]
        return Problem(log_kernel, *log_masses(a, b), rho_a, rho_b, cost.dtype)

    def plan(self, f: Tensor, g: Tensor) -> Tensor:
        """The plan of the dual potentials f (B, N) and g (B, K), in the precision of the cost."""
        f, g = f.to(self.log_kernel.dtype), g.to(self.log_kernel.dtype)
        return (self.log_kernel + f[:, :, None]).add_(g[:, None, :]).to(self.dtype).exp_()

    def start(self) -> tuple[Tensor, Tensor]:
        """Potentials that centre the kernel: the largest entry of each row and column is near 1; -inf where empty."""
        barred = torch.where(self.log_b.isneginf(), -math.inf, 0).to(self.log_kernel.dtype)
        f = -(self.log_kernel + barred[:, None]).amax(2)
        f = f.masked_fill(self.log_a.isneginf() | f.isinf(), -math.inf)
        g = -(self.log_kernel + f[:, :, None]).amax(1)
        return f.double(), g.masked_fill(self.log_b.isneginf() | g.isinf(), -math.inf).double()

    def scaling(self, f: Tensor, g: Tensor) -> 'Scaling':
        """The iteration on the kernel of f and g."""
        kernel = self.plan(f, g)
        a, b = self.log_a.exp().to(self.dtype), self.log_b.exp().to(self.dtype)
        transposed = kernel.transpose(1, 2).contiguous()
        return Scaling(kernel, transposed, a, b, torch.ones_like(a), torch.ones_like(b), f, g)

    def error(self, f: Tensor, g: Tensor) -> Tensor:
        """Largest change that the next update of f or of g would make, (B,)."""
        row_change = self.new_f(-(self.log_kernel + g[:, None, :]).logsumexp(2)) - f
        column_change = self.new_g(-(self.log_kernel + f[:, :, None]).logsumexp(1)) - g
        return self.largest(row_change, column_change)

    def largest(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """Largest absolute value on rows and columns that are not empty, (B,)."""
        of_rows = of_rows.masked_fill(self.log_a.isneginf(), 0).abs().amax(1)
        return torch.maximum(of_rows, of_columns.masked_fill(self.log_b.isneginf(), 0).abs().amax(1))

    def new_f(self, minus_log_sum: Tensor) -> Tensor:
        """Update of f from -log sum_j exp(g_j - C_ij / reg), (B, N)."""
        return _damp(self.log_a + minus_log_sum, self.rho_a)

    def new_g(self, minus_log_sum: Tensor) -> Tensor:
        """Update of g from -log sum_i exp(f_i - C_ij / reg), (B, K)."""
        return _damp(self.log_b + minus_log_sum, self.rho_b)

    def log_steps(self, f: Tensor, g: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The updates by logsumexp: slow, and safe for any finite cost."""
        for _ in range(steps):
            f = self.new_f(-(self.log_kernel + g[:, None, :]).logsumexp(2))
            f = f.masked_fill(self.log_a.isneginf(), -math.inf)
            g = self.new_g(-(self.log_kernel + f[:, :, None]).logsumexp(1))
            g = g.masked_fill(self.log_b.isneginf(), -math.inf)
        shift = self.translation(f, g)
        return f + shift, g - shift

    def translation(self, f: Tensor, g: Tensor) -> Tensor:
        """The t that maximises the dual of (f + t, g - t), (B, 1) (Sejourne et al., proposition 2)."""
        total = 1 / (1 / self.rho_a + 1 / self.rho_b)
        mass_a = (self.log_a - ratio(f, self.rho_a)).logsumexp(1)
        mass_b = (self.log_b - ratio(g, self.rho_b)).logsumexp(1)
        nothing = total.isinf() | mass_a.isinf() | mass_b.isinf()  # constrained, or without mass
        return torch.where(nothing, 0, total * (mass_a - mass_b))[:, None]


class Scaling(NamedTuple):
    """The iteration on a kernel that holds the potentials f and g; u and v scale its rows and columns."""

    kernel: Tensor  # (B, N, K) exp(-C/reg + f + g), in the precision of the cost, as are the next five
    transposed: Tensor  # (B, K, N) the same: torch is ten times faster at row x matrix than at matrix x column
    a: Tensor  # (B, N)
    b: Tensor  # (B, K)
    u: Tensor  # (B, N)
    v: Tensor  # (B, K)
    f: Tensor  # (B, N) float64
    g: Tensor  # (B, K) float64

    def potentials(self) -> tuple[Tensor, Tensor]:
        """What f and g have become, -inf where empty."""
        return self.f + self.u.double().log(), self.g + self.v.double().log()

    def steps(self, problem: Problem, steps: int) -> tuple['Scaling', Tensor, Tensor]:
        """Iterate; returns the new state, the error (B,) and the largest |log u| or |log v| (B,)."""
        kernel, transposed, a, b, u, v, f, g = self
        update_u, update_v = _update(a, f, problem.rho_a), _update(b, g, problem.rho_b)
        row_sums = torch.bmm(v[:, None], transposed)[:, 0]
        for _ in range(steps):
            u = update_u(row_sums)
            column_sums = torch.bmm(u[:, None], kernel)[:, 0]
            v = update_v(column_sums)
            row_sums = torch.bmm(v[:, None], transposed)[:, 0]
        new_f, new_g = self._replace(u=u, v=v).potentials()
        shift = problem.translation(new_f, new_g)
        state = self._replace(u=u * shift.exp().to(u.dtype), v=v * (-shift).exp().to(v.dtype))
        new_f, new_g = new_f + shift, new_g - shift
        row_change = problem.new_f(f - row_sums.double().log() + shift) - new_f
        column_change = problem.new_g(g - column_sums.double().log() - shift) - new_g
        return state, problem.largest(row_change, column_change), problem.largest(new_f - f, new_g - g)


def check_values(cost: Tensor, a: Tensor, b: Tensor, reg: Tensor, rho_a: Tensor, rho_b: Tensor) -> None:
    """Raise ValueError if a cost or marginal is not finite, or a marginal or weight is out of its range."""

    def complain() -> None:
        for name, values in (('cost', cost), ('a', a), ('b', b)):
            bad = int((~values.isfinite()).sum())
            if bad:
                raise ValueError(f'{name} holds {bad} NaN or infinite of {values.numel()} entries')
        if not ((reg > 0) & reg.isfinite()).all():
            raise ValueError(f'reg must be positive and finite, got {reg.tolist()}')
        for name, values in (('a', a), ('b', b), ('reg_a', rho_a), ('reg_b', rho_b)):
            if not (values >= 0).all():
                raise ValueError(f'{name} must not be negative or NaN, got {values.min().item():g}')
        units = (cost.abs().amax((1, 2)).double() / reg).max().item()
        raise ValueError(
            f'reg is too small for the cost, whose largest entry is {units:.3g} times reg: in float64 a plan is '
            f'precise below {PRECISE_BELOW:.0e}. Take a larger reg, or HungarianAssigner, the limit of a small reg'
        )

    good = [(mass >= 0).all() & mass.sum().isfinite() for mass in (a, b)]
    good += [cost.sum().isfinite(), ((reg > 0) & reg.isfinite() & (rho_a >= 0) & (rho_b >= 0)).all()]
    good += [(cost.abs().amax((1, 2)) < PRECISE_BELOW * reg).all()]
    act_if(~torch.stack(good).all(), complain)


def log_masses(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the marginals, float64; all -inf where one side has no mass, so the other has nowhere to go."""
    log_a, log_b = a.double().log(), b.double().log()
    nothing = (log_a.amax(1).isneginf() | log_b.amax(1).isneginf())[:, None]
    return log_a.masked_fill(nothing, -math.inf), log_b.masked_fill(nothing, -math.inf)


def choose(mask: Tensor, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """From each pair of tensors (B, ...) the first where mask (B,) is True."""
    return [torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y) for x, y in zip(first, second)]


def ratio(potential: Tensor, rho: Tensor) -> Tensor:
    """potential / rho; 0 where rho is inf or 0 (the potential is 0 then), and on empty rows or columns."""
    skip = potential.isinf() | (rho.isinf() | (rho == 0))[:, None]
    return torch.where(skip, 0, potential / rho[:, None])


def _update(mass: Tensor, potential: Tensor, rho: Tensor) -> Callable[[Tensor], Tensor]:
    """From sums over the scaled kernel to the scaling of a side, (B, n), 0 where the side is empty."""
    tiny = torch.finfo(mass.dtype).tiny
    power = (1 - 1 / (rho + 1))[:, None]
    # A potential of -inf counts as finite here, or its product with 0 would be NaN on a side that is a constraint.
    factor = torch.where(mass > 0, ((power - 1) * potential.clamp(min=-1e300)).exp(), 0).to(mass.dtype)
    power = power.to(mass.dtype)
    return lambda sums: factor * (mass / sums.clamp(min=tiny)).pow(power)


def _damp(potential: Tensor, rho: Tensor) -> Tensor:
    """rho / (rho + 1) * potential, for (B, n) and (B,); the potential itself where rho is inf, 0 where rho is 0."""
    return torch.where(rho[:, None] == 0, 0, potential * (1 - 1 / (rho + 1))[:, None])
