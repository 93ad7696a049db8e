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
   products with the kernel. Scalings that would leave the range of the dtype are absorbed into the kernel.
2. Where even that leaves the range, the problem does these iterations with logsumexp instead.
3. Only the kernel and its scalings, where the time goes, are in the precision of the cost. Potentials are float64, and
   so are the exponents of the kernel where costs are large beside reg.
4. In unbalanced problems the dual is also maximised over the translation (f + t, g - t) in closed form, without which
   convergence stalls when reg is small beside reg_a and reg_b.

Where convergence is still slow, with a small reg and columns that nearly all rows avoid, Newton's method takes over:
with the best f for each g, the dual is a concave function of the few g (semi-dual; Brauer et al., arXiv 1710.06635),
whose Hessian is one product of the plan with itself.
"""

import math
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from uotod_mmdet import ops
from uotod_mmdet.arguments import number
from uotod_mmdet.ops import deferred

CONSTRAINT = 1e8
"""Penalties above this many times reg count as constraints: the difference is less than float rounding."""


class SinkhornResult(NamedTuple):
    """A plan and how far the iteration got, for each problem of the batch.

    Attributes:
        plan: (B, N, K).
        f: Potentials of the rows in units of reg, (B, N), float64, -inf on empty rows.
        g: Potentials of the columns, likewise, (B, K).
        num_iter: Iterations done, (B,).
        error: Largest change that another update would make to f or g, of a row or column, relative; (B,).
        converged: Whether error <= tol, (B,) bool.
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    num_iter: Tensor
    error: Tensor
    converged: Tensor


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
        num_iter: Largest number of iterations, those of Newton's method included. On a GPU 20 cheap ones count as one,
            where Newton's method would be allowed.
        tol: Stop a problem at this ``error``. On a side that is a constraint 1e-3 means that each row or column holds
            its mass up to 0.1 %.
        check_every: Iterations between two checks of the error and of the size of the scalings.
        absorb_above: Absorb scalings when the logarithm of one is above this. None: as late as the dtype allows;
            0: at every check.
        newton_after: Iterations after which a problem that has not converged goes on with Newton's method. None: never.
        relative: Whether ``reg``, ``reg_a`` and ``reg_b`` are in units of a problem's largest absolute cost.
        scale: Factor of the returned plan of each problem, (B,). None: 1.

    Returns:
        SinkhornResult: Plan, potentials, iterations, error, convergence.

    Raises:
        TypeError: If an argument that must be a number is of another type.
        ValueError: If dtype or shapes do not fit, a number is out of its range, a cost or a marginal is not finite, a
            marginal is negative, or an entry of the plan is beyond the dtype (with weak ``reg_a``, ``reg_b``).
    """
    batch = _check_shapes(cost, a, b)
    num_iter, check_every = (
        number(name, value, at_least=1, whole=True)
        for name, value in (('num_iter', num_iter), ('check_every', check_every))
    )
    newton_after = -1 if newton_after is None else number('newton_after', newton_after, at_least=0, whole=True)
    reg = _number_of_each('reg', reg, batch)
    reg_a = None if reg_a is None else _number_of_each('reg_a', reg_a, batch)
    reg_b = None if reg_b is None else _number_of_each('reg_b', reg_b, batch)
    tol = number('tol', tol, at_least=0)
    if absorb_above is None:  # a third of the dtype's range: underflow in the kernel stays below rounding
        absorb_above = 10.0 if cost.dtype == torch.float32 else 250.0 / 3
    absorb_above = number('absorb_above', absorb_above, infinite=True)
    # Where a side is a constraint no entry is above its marginal. Where the penalties sum to 10 reg or more, an entry
    # beyond float32 takes a cost below -88 times the sum of all three: not looked for, as that costs time.
    weights: list[Any] = [reg_a, reg_b, reg]
    of_images = any(isinstance(weight, Tensor) for weight in weights)
    weak = None not in weights[:2] and (of_images or weights[0] + weights[1] < 10 * weights[2])
    if isinstance(reg, Tensor):
        reg = reg.to(cost.device, torch.float64).expand(batch).contiguous()
    else:  # filled on the device: a copy to it would wait
        reg = torch.full((batch,), reg, dtype=torch.float64, device=cost.device)
    rho_a, rho_b = (
        torch.full_like(reg, math.inf)
        if weight is None
        else (weight / reg).masked_fill_(weight / reg > CONSTRAINT, math.inf)
        for weight in (reg_a, reg_b)
    )
    scale = torch.ones_like(reg) if scale is None else scale
    a, b, scale = (tensor.to(cost.dtype).contiguous() for tensor in (a, b, scale))
    if cost.numel() == 0:
        f, g, error = a.double(), b.double(), cost.new_zeros(batch)
        return SinkhornResult(torch.zeros_like(cost), f, g, error.long(), error, error == 0)
    numbers = bool(relative), num_iter, check_every, newton_after, tol, absorb_above
    plan, f, g, done, error = ops.sinkhorn(cost.contiguous(), a, b, reg, rho_a, rho_b, scale, *numbers)
    if weak:
        _check_largest(plan, scale)
    return SinkhornResult(plan, f, g, done, error.to(cost.dtype), error <= tol)


def _check_largest(plan: Tensor, scale: Tensor) -> None:
    """Raise ValueError if an entry is beyond the dtype; the compiled exponential ends at half of float32's range."""

    def complain() -> None:
        raise ValueError(
            f'cost is {plan.dtype}, which does not hold the largest entry of the plan: with these reg_a and reg_b '
            'both sides may be left, so that a cost far below 0 in units of reg draws mass without end. Raise reg, or '
            'reg_a or reg_b, or add a constant to the cost'
        )

    largest = plan.detach().amax((1, 2)) / scale
    deferred.act_if((largest > torch.finfo(plan.dtype).max / 4).any(), complain)


def _number_of_each(name: str, value: Union[float, Tensor], batch: int) -> Union[float, Tensor]:
    """A number, or a tensor of one number for each of ``batch`` problems.

    Raises:
        TypeError: If the value is neither.
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


def _check_shapes(cost: Tensor, a: Tensor, b: Tensor) -> int:
    """Size of the batch; see :func:`sinkhorn`."""
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
    return len(cost)
