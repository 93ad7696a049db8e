"""Compare our Sinkhorn solver with POT on random problems: ``python tools/check_solver.py [--problems 300]``.

Problems are those of detection (N predictions, M ground truths and a background) with N to 400, M to 60, reg from 1e-3
to 1, and the weights of the marginals from 1e-3 to 1e3 or infinite. Both sides run to convergence; ours also in
float32, in a padded batch, and with absorption forced at every iteration. Prints the largest differences of the plan,
scaled by N so that a whole prediction is 1, and exits with 1 if one is above its bound.
"""

import argparse
import sys
import warnings

import numpy as np
import ot
import torch
from tqdm import tqdm

from uotod_mmdet.ot import sinkhorn

BOUNDS = {'float64': 1e-6, 'absorbed': 1e-6, 'padded batch': 1e-6, 'float32': 1e-4}


def random_problem(rng: np.random.Generator) -> tuple:
    """Cost (1, N, M + 1) and marginals in float64, reg, reg_a, reg_b; the cost is exact in float32."""
    num_rows = int(rng.integers(1, 401))
    num_gts = int(rng.integers(0, min(60, num_rows) + 1))
    cost = torch.from_numpy(rng.random((1, num_rows, num_gts + 1), dtype=np.float32)).double()
    rows = torch.full((1, num_rows), 1 / num_rows, dtype=torch.float64)
    columns = torch.full((1, num_gts + 1), 1 / num_rows, dtype=torch.float64)
    columns[0, -1] = (num_rows - num_gts) / num_rows
    weights = [float(10 ** rng.uniform(-3, 3)) if rng.random() < 0.7 else None for _ in range(2)]
    return cost, rows, columns, float(10 ** rng.uniform(-3, 0)), *weights


def solve_with_pot(cost, rows, columns, reg, reg_a, reg_b) -> tuple[np.ndarray, bool]:
    """POT's plan (N, M + 1) and whether it converged, judged by the optimality conditions."""
    used = columns[0] > 0
    a, b, problem = rows[0].numpy(), columns[0][used].numpy(), cost[0][:, used].numpy()
    if reg_a is None and reg_b is None:
        b = b / b.sum()
        plan = ot.sinkhorn(a, b, problem, reg, method='sinkhorn_log', numItermax=20000, stopThr=1e-12, warn=False)
        converged = np.abs(plan.sum(1) - a).sum() < 1e-9 and np.abs(plan.sum(0) - b).sum() < 1e-9
    else:
        reg_m = tuple(np.inf if weight is None else weight for weight in (reg_a, reg_b))
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a, b, problem, reg, reg_m=reg_m, reg_type='entropy', numItermax=20000, stopThr=1e-13, log=True
        )
        converged = log['err'] and log['err'][-1] < 1e-12
    full = np.zeros(cost.shape[1:])
    full[:, used.numpy()] = plan
    return full, bool(converged)


def differences(problem: tuple) -> dict[str, float] | None:
    """Largest differences from POT for each way of solving; None where POT or we did not converge."""
    cost, rows, columns, *regs = problem
    num_rows, num_columns = cost.shape[1:]
    expected, converged = solve_with_pot(*problem)
    options = dict(num_iter=20000, tol=1e-11, check_every=20)
    ours = sinkhorn(cost, rows, columns, *regs, **options)
    if not converged or not ours.converged.all():
        return None
    padded = sinkhorn(
        torch.nn.functional.pad(cost, (3, 0)).repeat(2, 1, 1) * torch.tensor([1.0, 0.5])[:, None, None],
        rows.repeat(2, 1),
        torch.nn.functional.pad(columns, (3, 0)).repeat(2, 1),
        *regs,
        **options,
    )
    results = {
        'float64': ours.plan[0],
        'absorbed': sinkhorn(cost, rows, columns, *regs, **{**options, 'check_every': 1}, absorb_above=0.0).plan[0],
        'padded batch': padded.plan[0, :, 3:],
        'float32': sinkhorn(
            cost.float(), rows.float(), columns.float(), *regs, num_iter=20000, tol=2e-6, check_every=20
        ).plan[0],
    }
    return {name: num_rows * float(np.abs(plan.double().numpy() - expected).max()) for name, plan in results.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--problems', type=int, default=300, help='how many (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the problems (%(default)s)')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    rng = np.random.default_rng(args.seed)
    tried, worst, open_ended = 0, dict.fromkeys(BOUNDS, (0.0, None)), 0
    with tqdm(total=args.problems) as progress:
        while tried < args.problems:
            problem = random_problem(rng)
            found = differences(problem)
            if found is None:
                open_ended += 1
                continue
            tried += 1
            progress.update()
            for name, value in found.items():
                worst[name] = max(worst[name], (value, str((tuple(problem[0].shape), *problem[3:]))))
    print(f'{tried} problems compared; {open_ended} more on which one side had not converged after 20 000 iterations')
    for name, (value, where) in worst.items():
        print(f'{name:>14}: largest difference {value:.2e} (bound {BOUNDS[name]:.0e})')
        print(f'{"":>16}at shape, reg, reg_a, reg_b = {where}')
    return int(any(worst[name][0] > bound for name, bound in BOUNDS.items()))


if __name__ == '__main__':
    sys.exit(main())
