r"""Entropic optimal transport, balanced and unbalanced, on a padded batch.

For each problem of the batch, with cost C, marginals a (rows) and b (columns), the plan minimises

.. math::
    \langle P, C\rangle - reg\,H(P) + reg_a\,KL(P1 | a) + reg_b\,KL(P^T1 | b),\qquad H(P) = -\sum P (\log P - 1)

where an infinite ``reg_a`` or ``reg_b`` turns that side's penalty into the constraint ``P1 = a`` or ``P^T1 = b``.
Both sides infinite is Sinkhorn's balanced problem (Cuturi, NeurIPS 2013); otherwise Chizat et al., Math. Comp. 2018.

The optimum is :math:`P_{ij} = \exp(f_i + g_j - C_{ij}/reg)`. Alternate maximisation of the dual updates

.. math::
    f_i = p_a (\log a_i - \log\sum_j e^{g_j - C_{ij}/reg}),\quad p_a = reg_a / (reg_a + reg)

and likewise g. Four things make it fast and safe (Schmitzer, arXiv 1610.06519; Sejourne et al., arXiv 2201.00730):

1. f and g are split into an absorbed part, inside a stored kernel, and scalings u and v, so that an iteration is two
   products with the kernel. Scalings that grow past what floats hold are absorbed into the kernel.
2. A problem for which even that leaves the float range does those iterations with logsumexp instead.
3. Only the kernel and its scalings, where the time goes, are in the precision of the cost. Potentials are float64, and
   so are the exponents of the kernel where costs are large beside reg.
4. In unbalanced problems the dual is also maximised over the translation (f + t, g - t) in closed form, without which
   convergence stalls when reg is small beside reg_a and reg_b.

Where that is still slow, as it is with small reg and columns that nearly all rows avoid, Newton's method takes over:
with the best f for each g, the dual is a concave function of the few g (semi-dual; Brauer et al., arXiv 1710.06635),
whose Hessian is one product of the plan with itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.arguments import number
from uotod_mmdet.device import act_if, host_may_wait
from uotod_mmdet.native import Kernel

NEWTON_COLUMNS = 128
"""Problems with more columns do without Newton's method, whose steps grow with the square of their number."""


NEWTON_STEPS = 30
"""Steps of Newton's method where the host does not look at the error."""


EXACT_BELOW = 128.0
"""Largest cost in units of reg whose rounding in float32 changes the plan by less than 1e-5 of itself."""

CONSTRAINT = 1e8
"""Penalties more than this many times reg are constraints: the difference is less than float rounding."""

PRECISE_BELOW = 1e12
"""Largest cost in units of reg whose rounding in float64 changes the plan by less than 1e-3 of itself."""


SINKHORN = Kernel(
    'uotod_sinkhorn',
    'cost: f32[B N K], a: f32[B N], b: f32[B K], reg: f64[B], rho_a: f64[B], rho_b: f64[B], relative: int, B, N, K, '
    'num_iter: int, check_every: int, newton_after: int, tol: float, absorb_above: float, scale: f32[B], '
    'plan: f32[B N K], done: i64[B], error: f64[B]',
)


class SinkhornResult(NamedTuple):
    """A plan and how far the iteration got, for each problem of the batch."""

    plan: Tensor  # (B, N, K)
    num_iter: Tensor  # (B,) iterations done
    error: Tensor  # (B,) largest change that another update would make to f or g: of a row or column, relative
    converged: Tensor  # (B,) bool, error <= tol


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Union[float, Tensor],
    reg_a: Optional[Union[float, Tensor]] = None,
    reg_b: Optional[Union[float, Tensor]] = None,
    num_iter: int = 1000,
    tol: float = 1e-6,
    check_every: int = 10,
    absorb_above: Optional[float] = None,
    newton_after: Optional[int] = 40,
    relative: bool = False,
    scale: Optional[Tensor] = None,
    look: Optional[bool] = None,
) -> SinkhornResult:
    """Solve a batch of entropic transport problems (see the module's docstring for the problem and the method).

    Problems do not influence each other: one that has converged stops moving while its neighbours go on.

    Args:
        cost: Finite costs, (B, N, K), float32 or float64.
        a: Row marginals, (B, N), not negative. A row of zero mass (padding) gets a zero row of the plan.
        b: Column marginals, (B, K), likewise. A side that is a constraint must sum to what the other side sums to.
        reg: Weight of the entropy, > 0, in units of cost; a number or one per problem, (B,).
        reg_a: Weight of KL(P1 | a), >= 0, in units of cost; a number or one per problem, (B,). None or inf: P1 = a is a
            constraint.
        reg_b: Weight of KL(P^T1 | b), likewise.
        num_iter: Iterations at most.
        tol: Stop a problem at this ``error``. On a side that is a constraint 1e-3 means that each row or column holds
            its mass up to 0.1 %.
        check_every: Iterations between two looks at the error and at the size of the scalings.
        absorb_above: Absorb scalings when the logarithm of one is above this. None: as late as the dtype allows;
            0: at every look.
        newton_after: Iterations after which a problem that has not converged goes on with Newton's method. None: never.
        relative: Whether ``reg``, ``reg_a`` and ``reg_b`` are in units of a problem's largest absolute cost.
        scale: Factor of each problem's plan that is returned, (B,). None: 1.
        look: Whether the host may read the error, to stop as soon as all problems have converged. Without, ``num_iter``
            iterations are done, or after at most 20 of them :data:`NEWTON_STEPS` of Newton's method; problems that have
            converged stop moving. None: not on a GPU, where the host would have to wait.

    Returns:
        SinkhornResult: Plan, iterations, error, convergence.

    Raises:
        TypeError: If a number is none.
        ValueError: If dtype or shapes do not fit, a number is out of its range, a cost or a marginal is not finite, or
            a marginal is negative.
    """
    batch, rows, columns = _check_shapes(cost, a, b)
    num_iter, check_every = (
        number(name, value, at_least=1, whole=True)
        for name, value in (('num_iter', num_iter), ('check_every', check_every))
    )
    newton_after = number('newton_after', newton_after, at_least=0, whole=True, optional=True)
    reg = _number_of_each('reg', reg, batch)
    reg_a = None if reg_a is None else _number_of_each('reg_a', reg_a, batch)
    reg_b = None if reg_b is None else _number_of_each('reg_b', reg_b, batch)
    tol, absorb_above = (
        number('tol', tol, at_least=0),
        number('absorb_above', absorb_above, infinite=True, optional=True),
    )
    if batch == 0 or rows == 0 or columns == 0:
        error = cost.new_zeros(batch)
        return SinkhornResult(torch.zeros_like(cost), error.long(), error, error == 0)

    dtype = cost.dtype
    reg = torch.as_tensor(reg, dtype=torch.float64, device=cost.device).expand(batch)
    # reg_a and reg_b in units of reg; inf on a constrained side
    rho_a, rho_b = (torch.full_like(reg, math.inf) if weight is None else weight / reg for weight in (reg_a, reg_b))
    rho_a, rho_b = (rho.masked_fill(rho > CONSTRAINT, math.inf) for rho in (rho_a, rho_b))
    # A lost entry of the kernel (underflow) and scalings at their limit together stay below float rounding.
    limit = 30.0 if dtype == torch.float32 else 250.0
    absorb_above = limit / 3 if absorb_above is None else absorb_above
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (cost, a, b))
    if look is not False and not differentiated and SINKHORN.takes(cost=cost):
        problem = dict(cost=cost, reg=reg.contiguous(), rho_a=rho_a.contiguous(), rho_b=rho_b.contiguous())
        scale = cost.new_ones(batch) if scale is None else scale
        problem.update((name, x.to(dtype).contiguous()) for name, x in (('a', a), ('b', b), ('scale', scale)))
        if SINKHORN.takes(**problem):
            newton_after = -1 if newton_after is None else newton_after
            options = dict(num_iter=num_iter, check_every=check_every, newton_after=newton_after)
            plan, error, done = torch.empty_like(cost), torch.empty_like(reg), torch.empty_like(reg, dtype=torch.long)
            options.update(tol=tol, absorb_above=absorb_above, relative=bool(relative))
            if SINKHORN(**problem, **options, plan=plan, done=done, error=error) == 0:
                return SinkhornResult(plan, done, error.to(dtype), error <= tol)

    reg = reg * largest_cost(cost) if relative else reg
    _check_values(cost, a, b, reg, rho_a, rho_b)
    look = host_may_wait(cost) if look is None else look
    log_a, log_b = a.double().log(), b.double().log()
    # Where one side has no mass at all, the other one has nowhere to go.
    nothing = (log_a.amax(1).isneginf() | log_b.amax(1).isneginf())[:, None]
    a, b = a.masked_fill(nothing, 0), b.masked_fill(nothing, 0)
    log_a, log_b = log_a.masked_fill(nothing, -math.inf), log_b.masked_fill(nothing, -math.inf)
    # Where costs are not many times reg, their own precision is enough for the exponents, too.
    log_kernel = cost / -reg.to(dtype)[:, None, None]
    if dtype != torch.float64 and not (look and log_kernel.abs().amax() < EXACT_BELOW):
        log_kernel = cost.double() / -reg[:, None, None]
    problem = _Problem(
        log_kernel=log_kernel,
        log_a=log_a,
        log_b=log_b,
        rho_a=rho_a,
        rho_b=rho_b,
        constrained_a=reg_a is None or (not isinstance(reg_a, Tensor) and reg_a == math.inf),
        constrained_b=reg_b is None or (not isinstance(reg_b, Tensor) and reg_b == math.inf),
        dtype=dtype,
    )
    if not look:
        result = _solve_without_looking(problem, a, b, num_iter, tol, check_every, newton_after, limit)
        return result if scale is None else result._replace(plan=result.plan * scale.to(dtype)[:, None, None])

    f, g = problem.start()
    done = torch.zeros(batch, dtype=torch.long, device=cost.device)
    everything = torch.arange(batch, device=cost.device)
    # The problems that are iterated on, and the places among them of those that have not converged; the others are left
    # behind when they are half, as selecting copies.
    members, running = everything, everything
    part, state = problem, None  # of the members
    plan, error = torch.empty_like(cost), torch.full_like(reg, math.inf)
    iteration = 0

    while iteration < num_iter and len(running):
        if newton_after is not None and iteration >= newton_after and columns <= NEWTON_COLUMNS:
            members = members[running]
            part = problem.select(members)
            new_f, new_g, done[members] = part.newton_steps(f[members], g[members], iteration, num_iter, tol)
            plan[members] = part.plan(new_f, new_g)
            error[members] = part.error(plan[members], new_f, new_g)
            break
        if len(running) < len(members) and (state is None or 2 * len(running) <= len(members)):
            state = None if state is None else state.select(running)
            members, part, running = members[running], part.select(running), everything[: len(running)]
        if state is None:
            state = part.scaling(a[members], b[members], f[members], g[members])
        steps = min(check_every, num_iter - iteration)
        iteration += steps
        state, changes, largest = state.steps(part, steps)
        new_f, new_g = state.potentials()

        places = running.tolist()
        errors, scalings = torch.stack([changes, largest])[:, running].tolist()  # the one transfer to the host
        bad = [place for place, scaling in zip(places, scalings) if not scaling < limit]  # also where NaN
        if bad:
            index = torch.tensor(bad, device=cost.device)
            sub = part.select(index)
            new_f[index], new_g[index] = sub.log_steps(f[members[index]], g[members[index]], steps)
            changes[index] = sub.error(sub.plan(new_f[index], new_g[index]), new_f[index], new_g[index])
            errors = changes[running].tolist()
        changed = members[running]
        f[changed], g[changed], done[changed] = new_f[running], new_g[running], iteration
        error[changed] = changes[running]
        left = [place for place, value in zip(places, errors) if value > tol]
        if len(left) < len(places) or iteration >= num_iter:
            leaving = [place for place in places if place not in left or iteration >= num_iter]
            if len(leaving) == batch:
                plan = state.plan()
            else:
                index = torch.tensor(leaving, device=cost.device)
                plan[members[index]] = state.select(index).plan()
            rescued = [place for place in leaving if place in bad]
            if rescued:
                index = torch.tensor(rescued, device=cost.device)
                plan[members[index]] = part.select(index).plan(new_f[index], new_g[index])
            running = torch.tensor(left, dtype=torch.long, device=cost.device)
        if bad or max(scalings) >= absorb_above:
            state = None

    if scale is not None:
        plan.mul_(scale.to(dtype)[:, None, None])
    return SinkhornResult(plan, done, error.to(dtype), error <= tol)


def _number_of_each(name: str, value: Union[float, Tensor], batch: int) -> Union[float, Tensor]:
    """The number, or the tensor of one for each of ``batch`` problems.

    Raises:
        TypeError: If it is neither.
        ValueError: If the tensor has another shape. Ranges are checked with the costs.
    """
    if type(value) in (int, float):
        return float(value)
    if not isinstance(value, Tensor):
        return number(name, value, infinite=True)
    if value.shape not in ((), (1,), (batch,)) or value.is_complex():
        raise ValueError(
            f'{name} must be a number or a real tensor of shape ({batch},), one for each problem, got {value.dtype} of '
            f'shape {tuple(value.shape)}'
        )
    return value


def _check_shapes(cost: Tensor, a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """Sizes of the batch; see :func:`sinkhorn`."""
    for name, values in (('cost', cost), ('a', a), ('b', b)):
        if not isinstance(values, Tensor):
            raise TypeError(f'{name} must be a tensor, got {type(values).__name__}')
    if cost.dtype not in (torch.float32, torch.float64) or cost.dim() != 3:
        raise ValueError(
            f'cost must be float32 or float64 of shape (B, N, K), got {cost.dtype} of shape {tuple(cost.shape)}'
        )
    for name, mass, shape in (('a', a, cost.shape[:2]), ('b', b, (cost.size(0), cost.size(2)))):
        if mass.shape != shape:
            raise ValueError(f'{name} must have shape {tuple(shape)}, got {tuple(mass.shape)}')
    return tuple(cost.shape)


def _check_values(cost: Tensor, a: Tensor, b: Tensor, reg: Tensor, rho_a: Tensor, rho_b: Tensor) -> None:
    """Raise ValueError where a problem is none; see :func:`sinkhorn`."""

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


def largest_cost(cost: Tensor) -> Tensor:
    """Largest absolute cost of each problem, 1 where all are 0, float64, (B,)."""
    largest = torch.maximum(cost.amax((1, 2)), -cost.amin((1, 2))).double()
    return torch.where(largest > 0, largest, 1)


def _solve_without_looking(
    problem: '_Problem',
    a: Tensor,
    b: Tensor,
    num_iter: int,
    tol: float,
    check_every: int,
    newton_after: Optional[int],
    limit: float,
) -> SinkhornResult:
    """The same without reading a value on the host: every choice is made on the device, for each problem."""
    f, g = problem.start()
    error = torch.full_like(problem.rho_a, math.inf)
    done = torch.zeros_like(error, dtype=torch.long)
    newton = newton_after is not None and g.size(1) <= NEWTON_COLUMNS
    first = min(num_iter, newton_after, 20) if newton else num_iter
    iteration = 0
    while iteration < first:
        steps = min(check_every, first - iteration)
        iteration += steps
        moving = ~(error <= tol)
        # One update by logsumexp, which is safe, and from there the others, which count where floats held them.
        f, g = _choose(moving, problem.log_steps(f, g, 1), (f, g))
        state, changes, scalings = problem.scaling(a, b, f, g).steps(problem, max(steps - 1, 1))
        good = moving & (scalings < limit)
        f, g = _choose(good, state.potentials(), (f, g))
        error, done = torch.where(good, changes, error), torch.where(moving, iteration, done)
    if not newton:
        return SinkhornResult(problem.plan(f, g), done, error.to(problem.dtype), error <= tol)

    state, radius, last_good = problem.semi_dual(g), torch.full_like(error, 4.0), torch.ones_like(error) > 0
    for step in range(min(NEWTON_STEPS, num_iter - first) + 1):
        sinkhorn_g = problem.new_g(g - state.sums.log())
        error = problem.largest(torch.zeros_like(f), sinkhorn_g - g)
        moving = ~(error <= tol)
        if step == min(NEWTON_STEPS, num_iter - first):
            break
        change = problem.newton_step(state, g)
        change = torch.maximum(torch.minimum(change, radius[:, None]), -radius[:, None])
        # Where the last step did not raise the dual, an update by Sinkhorn, which always does.
        (trial,) = _choose(last_good, (g + change,), (sinkhorn_g,))
        new_state = problem.semi_dual(trial)
        good = ~last_good | (new_state.value >= state.value - 10 * torch.finfo(problem.dtype).eps * state.value.abs())
        accepted = moving & good
        g, *fields = _choose(accepted, (trial, *new_state), (g, *state))
        state = _SemiDual(*fields)
        radius = torch.where(good, 4 * radius, (radius / 8).clamp(min=0.1))
        last_good, done = good, torch.where(moving, done + 1, done)
    return SinkhornResult(state.plan, done, error.to(problem.dtype), error <= tol)


def _choose(mask: Tensor, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """From each pair of tensors (B, ...) the first where mask (B,) is True."""
    return [torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y) for x, y in zip(first, second)]


class _Problem(NamedTuple):
    """What does not change during the iteration."""

    log_kernel: Tensor  # (B, N, K) -C/reg, in the precision of the cost or in float64
    log_a: Tensor  # (B, N)
    log_b: Tensor  # (B, K)
    rho_a: Tensor  # (B,) reg_a / reg
    rho_b: Tensor  # (B,) reg_b / reg
    constrained_a: bool  # whether rho_a is inf for every problem
    constrained_b: bool
    dtype: torch.dtype  # of the cost

    @property
    def unbalanced(self) -> bool:
        return not (self.constrained_a and self.constrained_b)

    def select(self, index: Tensor) -> '_Problem':
        return _Problem(*(tensor[index] for tensor in self[:-3]), *self[-3:])

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

    def scaling(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> '_Scaling':
        """The iteration on the kernel of f and g."""
        kernel = self.plan(f, g)
        masses = a.to(self.dtype), b.to(self.dtype)
        return _Scaling(kernel, kernel.transpose(1, 2).contiguous(), *masses, *map(torch.ones_like, masses), f, g)

    def error(self, plan: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """Largest change that the next update of f or of g would make, (B,)."""
        row_change = self.new_f(f - plan.sum(2).double().log()) - f
        column_change = self.new_g(g - plan.sum(1).double().log()) - g
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
        if self.unbalanced:
            shift = self.translation(f, g)
            f, g = f + shift, g - shift
        return f, g

    def newton_steps(
        self, f: Tensor, g: Tensor, iteration: int, num_iter: int, tol: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maximise the semi-dual from g; returns f, g and the iterations done, those before included, (B,).

        A step is cut to a radius that grows while steps raise the dual and shrinks when one does not; in place of the
        latter goes an update of g by Sinkhorn, which always raises it.
        """
        f, g, done = f.clone(), g.clone(), torch.full_like(self.rho_a, iteration, dtype=torch.long)
        slack = 10 * torch.finfo(self.dtype).eps  # what the dual's value may lose in rounding
        active, problem, radius = torch.arange(len(f), device=f.device), self, torch.full_like(self.rho_a, 4.0)
        state = self.semi_dual(g)
        while True:
            f[active], done[active] = state.f, iteration
            sinkhorn = problem.new_g(g[active] - state.sums.log())
            error = problem.largest(torch.zeros_like(state.f), sinkhorn - g[active])
            left = [place for place, value in enumerate(error.tolist()) if value > tol]
            if iteration >= num_iter or not left:
                return f, g, done
            if len(left) < len(active):
                still = torch.tensor(left, device=f.device)
                active, problem, radius = active[still], problem.select(still), radius[still]
                state, sinkhorn = state.select(still), sinkhorn[still]
            iteration += 1
            step = problem.newton_step(state, g[active])
            new_g = g[active] + torch.maximum(torch.minimum(step, radius[:, None]), -radius[:, None])
            new_state = problem.semi_dual(new_g)
            good = new_state.value >= state.value - slack * state.value.abs()  # False where NaN, too
            radius = torch.where(good, 4 * radius, (radius / 8).clamp(min=0.1))
            bad = (~good).nonzero().squeeze(1)
            if len(bad):
                new_g[bad] = sinkhorn[bad]
                for ours, theirs in zip(new_state, problem.select(bad).semi_dual(sinkhorn[bad])):
                    ours[bad] = theirs
            g[active], state = new_g, new_state

    def semi_dual(self, g: Tensor) -> '_SemiDual':
        """The best f for g, and what follows from it."""
        log_plan = self.log_kernel + g[:, None, :]
        peak = log_plan.amax(2).clamp(min=-1e300)
        plan = log_plan.sub_(peak[:, :, None]).to(self.dtype).exp_()
        total = plan.sum(2).double()
        log_sums = peak + total.log()
        f = self.new_f(-log_sums).masked_fill(self.log_a.isneginf(), -math.inf)
        rows = (f + log_sums).exp().masked_fill(self.log_a.isneginf(), 0)
        plan *= (rows / total).nan_to_num(0).to(self.dtype)[:, :, None]
        value = _reward(f, self.log_a, self.rho_a) + _reward(g, self.log_b, self.rho_b) - rows.sum(1)
        # Of a column that all rows avoid, less than the dtype holds: an upper bound, so that updates fall short.
        sums = plan.sum(1).double().clamp(min=torch.finfo(self.dtype).tiny)
        return _SemiDual(f, value, plan, rows, sums)

    def newton_step(self, state: '_SemiDual', g: Tensor) -> Tensor:
        """Newton's step of g, (B, K)."""
        empty = self.log_b.isneginf()
        wanted = (self.log_b - _ratio(g, self.rho_b)).exp()
        curvature = state.sums + torch.where(self.rho_b.isinf()[:, None], 0, wanted / self.rho_b[:, None])
        share = (1 - 1 / (self.rho_a + 1))[:, None] / torch.where(state.rows > 0, state.rows, 1)
        weighted = state.plan * share.to(self.dtype)[:, :, None]
        hessian = torch.bmm(weighted.transpose(1, 2), state.plan).double().neg_()
        # The dual of a balanced problem does not change along (1, ..., 1): one rank more keeps the step off that.
        balanced = (self.rho_a.isinf() & self.rho_b.isinf())[:, None]
        hessian += state.sums[:, :, None] * (balanced * state.sums / state.sums.sum(1, keepdim=True))[:, None, :]
        rounding = torch.finfo(self.dtype).eps
        diagonal = curvature * (1 + rounding) + rounding * 1e-3 * curvature.amax(1, keepdim=True)
        hessian.diagonal(dim1=1, dim2=2).add_(torch.where(empty, 1, diagonal))
        gradient = (wanted - state.sums).masked_fill(empty, 0)
        step = torch.linalg.solve_ex(hessian, gradient)[0]
        return torch.where(step.isfinite(), step, gradient / curvature).masked_fill(empty, 0)

    def translation(self, f: Tensor, g: Tensor) -> Tensor:
        """The t that maximises the dual of (f + t, g - t), (B, 1) (Sejourne et al., proposition 2)."""
        total = 1 / (1 / self.rho_a + 1 / self.rho_b)
        mass_a = (self.log_a - _ratio(f, self.rho_a)).logsumexp(1)
        mass_b = (self.log_b - _ratio(g, self.rho_b)).logsumexp(1)
        nothing = total.isinf() | mass_a.isinf() | mass_b.isinf()  # constrained, or without mass
        return torch.where(nothing, 0, total * (mass_a - mass_b))[:, None]


class _SemiDual(NamedTuple):
    """The dual as a function of g alone, f being the best for it."""

    f: Tensor  # (B, N)
    value: Tensor  # (B,) of the dual
    plan: Tensor  # (B, N, K) in the precision of the cost
    rows: Tensor  # (B, N) its row sums
    sums: Tensor  # (B, K) its column sums

    def select(self, index: Tensor) -> '_SemiDual':
        return _SemiDual(*(tensor[index] for tensor in self))


class _Scaling(NamedTuple):
    """The iteration on a kernel that holds the potentials f and g; u and v scale its rows and columns."""

    kernel: Tensor  # (B, N, K) exp(-C/reg + f + g), in the precision of the cost, as are the next five
    transposed: Tensor  # (B, K, N) the same: torch is ten times faster at row x matrix than at matrix x column
    a: Tensor  # (B, N)
    b: Tensor  # (B, K)
    u: Tensor  # (B, N)
    v: Tensor  # (B, K)
    f: Tensor  # (B, N) float64
    g: Tensor  # (B, K) float64

    def select(self, index: Tensor) -> '_Scaling':
        return _Scaling(*(tensor[index] for tensor in self))

    def plan(self) -> Tensor:
        """The kernel, scaled."""
        return (self.kernel * self.u[:, :, None]).mul_(self.v[:, None, :])

    def potentials(self) -> tuple[Tensor, Tensor]:
        """What f and g have become, -inf where empty."""
        return self.f + self.u.double().log(), self.g + self.v.double().log()

    def steps(self, problem: _Problem, steps: int) -> tuple['_Scaling', Tensor, Tensor]:
        """Iterate; returns the new state, the error (B,) and the largest |log u| or |log v| (B,)."""
        kernel, transposed, a, b, u, v, f, g = self
        update_u = _update(a, f, problem.rho_a, problem.constrained_a)
        update_v = _update(b, g, problem.rho_b, problem.constrained_b)
        row_sums = torch.bmm(v[:, None], transposed)[:, 0]
        for _ in range(steps):
            u = update_u(row_sums)
            column_sums = torch.bmm(u[:, None], kernel)[:, 0]
            v = update_v(column_sums)
            row_sums = torch.bmm(v[:, None], transposed)[:, 0]
        state, shift = self._replace(u=u, v=v), 0.0
        new_f, new_g = state.potentials()
        if problem.unbalanced:
            shift = problem.translation(new_f, new_g)
            state = state._replace(u=u * shift.exp().to(u.dtype), v=v * (-shift).exp().to(v.dtype))
            new_f, new_g = new_f + shift, new_g - shift
        row_change = problem.new_f(f - row_sums.double().log() + shift) - new_f
        column_change = problem.new_g(g - column_sums.double().log() - shift) - new_g
        scalings = problem.largest(new_f - f, new_g - g)
        return state, problem.largest(row_change, column_change), scalings


def _update(mass: Tensor, potential: Tensor, rho: Tensor, constrained: bool) -> Callable[[Tensor], Tensor]:
    """From sums over the scaled kernel to the scaling of a side, (B, n), 0 where the side is empty."""
    tiny = torch.finfo(mass.dtype).tiny
    if constrained:
        return lambda sums: mass / sums.clamp(min=tiny)
    power = (1 - 1 / (rho + 1))[:, None]
    factor = torch.where(mass > 0, ((power - 1) * potential).exp(), 0).to(mass.dtype)
    power = power.to(mass.dtype)
    return lambda sums: factor * (mass / sums.clamp(min=tiny)).pow(power)


def _damp(potential: Tensor, rho: Tensor) -> Tensor:
    """rho / (rho + 1) * potential, for (B, n) and (B,); the potential itself where rho is inf, 0 where rho is 0."""
    return torch.where(rho[:, None] == 0, 0, potential * (1 - 1 / (rho + 1))[:, None])


def _reward(potential: Tensor, log_mass: Tensor, rho: Tensor) -> Tensor:
    """What a side adds to the dual, (B,): its mass times the potential, or where rho is finite, less than that."""
    mass = log_mass.exp()
    kept = torch.where(mass > 0, mass * potential, 0).sum(1)
    penalised = -rho * torch.where(mass > 0, mass * torch.expm1(-_ratio(potential, rho)), 0).sum(1)
    return torch.where(rho.isinf(), kept, torch.where(rho == 0, 0, penalised))


def _ratio(potential: Tensor, rho: Tensor) -> Tensor:
    """potential / rho; 0 where rho is inf or 0 (the potential is 0 then), and on empty rows or columns."""
    skip = potential.isinf() | (rho.isinf() | (rho == 0))[:, None]
    return torch.where(skip, 0, potential / rho[:, None])
