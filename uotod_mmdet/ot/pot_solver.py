"""The same problems solved by POT, one at a time in float64: slow, and independent of our own solver."""

import math
from typing import Optional, Union

import torch
from torch import Tensor

from uotod_mmdet.ops import largest_cost

from .sinkhorn import SinkhornResult


def solve_with_pot(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Union[float, Tensor],
    reg_a: Optional[Union[float, Tensor]] = None,
    reg_b: Optional[Union[float, Tensor]] = None,
    num_iter: int = 1000,
    tol: float = 1e-6,
    relative: bool = False,
    scale: Optional[Tensor] = None,
) -> SinkhornResult:
    """Solve the problems of :func:`~uotod_mmdet.ot.sinkhorn`, with the same arguments, by ``ot.sinkhorn`` and
    ``ot.unbalanced.sinkhorn_unbalanced`` (Flamary et al., JMLR 2021).

    POT's own criteria decide on convergence: the marginal error of balanced problems, the relative change of the
    scalings of unbalanced ones.

    Raises:
        ImportError: If POT is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError("solver='pot' needs the package POT: pip install POT") from error
    unit = largest_cost(cost) if relative else 1
    regs, *weights = (
        (torch.as_tensor(math.inf if weight is None else weight, dtype=torch.float64) * unit).expand(len(cost)).tolist()
        for weight in (reg, reg_a, reg_b)
    )
    plan = torch.zeros_like(cost, dtype=torch.float64)
    f, g = (torch.full_like(mass, -math.inf, dtype=torch.float64) for mass in (a, b))
    counts, errors = [], []
    for index in range(len(cost)):
        rows, columns = a[index] > 0, b[index] > 0
        real = rows[:, None] & columns
        if not real.any():
            counts.append(0)
            errors.append(0.0)
            continue
        problem = cost[index][rows][:, columns].double().cpu().numpy()
        masses = [mass[index][mass[index] > 0].double().cpu().numpy() for mass in (a, b)]
        common = dict(numItermax=num_iter, stopThr=tol, log=True, warn=False)
        penalties = tuple(weight[index] for weight in weights)
        if all(map(math.isinf, penalties)):
            masses = [mass / mass.sum() for mass in masses]  # POT needs exactly equal sums, which float32 may have lost
            solution, log = ot.sinkhorn(*masses, problem, regs[index], method='sinkhorn_log', **common)
        else:
            solution, log = ot.unbalanced.sinkhorn_unbalanced(
                *masses, problem, regs[index], reg_m=penalties, reg_type='entropy', **common
            )
        for potential, side, name in ((f, rows, 'u'), (g, columns, 'v')):
            found = log[f'log_{name}' if f'log_{name}' in log else f'log{name}']
            potential[index, side] = torch.from_numpy(found).to(plan.device)
        plan[index][real] = torch.from_numpy(solution).flatten().to(plan.device)
        counts.append(log.get('niter', num_iter))
        errors.append(float(log['err'][-1]) if log['err'] else math.inf)
    last_error = cost.new_tensor(errors)
    if scale is not None:
        plan.mul_(scale[:, None, None])
    num_iters = torch.tensor(counts, device=cost.device)
    return SinkhornResult(plan.to(cost.dtype), f, g, num_iters, last_error, last_error <= tol)
