"""The iteration of Sinkhorn as one Triton kernel, which stops by itself.

The updates are those of :func:`.transport_problem.Problem.log_steps`. The host reads nothing and launches once, where
the torch reference launches thousands of small kernels. Potentials are float64; between two checks only their changes
count, in the precision of the cost, on exponents that hold the potentials already. So no scaling can leave its range.

Each problem is the work of one program, or of several that hold some rows each and tell each other what they found.
These wait for each other, so all run at once: there are never more than the GPU has multiprocessors.

Imported only where Triton is installed, which torch for GPUs brings on Linux.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .transport_problem import log_masses

TILE = 4096
"""Entries of a problem that a program works on at a time."""

NUM_WARPS = 8

SMALLEST_PART, LARGEST_PART = tl.constexpr(0.3), tl.constexpr(0.998)
"""Of a block's progress in that of the block before: from where on and up to where it is extrapolated."""


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    rho_a: Tensor,
    rho_b: Tensor,
    scale: Tensor,
    num_iter: int,
    check_every: int,
    tol: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Plan, potentials, iterations and error of :func:`.sinkhorn.sinkhorn`, without Newton's method."""
    batch, rows, columns = cost.shape
    block_k = triton.next_power_of_2(columns)
    block_n = max(1, min(triton.next_power_of_2(rows), TILE // block_k))
    tiles = triton.cdiv(rows, block_n)
    parts = _programs_a_problem(cost, batch, tiles)
    padded = triton.cdiv(tiles, parts) * parts * block_n
    log_a, log_b = log_masses(a, b)
    plan, error, done = torch.empty_like(cost), torch.empty_like(reg), torch.empty_like(reg, dtype=torch.long)
    f, g = torch.empty_like(log_a), torch.empty_like(log_b)
    exponents, constants = cost.new_empty(batch, padded, block_k), cost.new_empty(batch, 2, padded)
    potentials = reg.new_empty(batch, 2, padded)
    shared, arrived = reg.new_empty(batch, 2, parts, 2, block_k), done.new_zeros(batch, dtype=torch.int32)
    with torch.cuda.device_of(cost):
        _solve[(batch * parts,)](
            *(cost, log_a, log_b, reg, rho_a, rho_b, scale, plan, f, g, done, error, exponents, constants, potentials),
            *(shared, arrived, rows, columns, padded // parts, num_iter, check_every, tol),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            PARTS=parts,
            num_warps=NUM_WARPS,
            **(dict(launch_cooperative_grid=True) if parts > 1 else {}),
        )
    return plan, f, g, done, error


def _programs_a_problem(cost: Tensor, batch: int, tiles: int) -> int:
    """A power of 2: so many that each has a few tiles, and all of the batch run at once."""
    if not cost.is_cuda:
        return 1
    room = torch.cuda.get_device_properties(cost.device).multi_processor_count // batch
    wanted = max(1, min(tiles // 2, room))
    return 1 << (wanted.bit_length() - 1)


@triton.jit
def _log_sum(x):
    """(n, k) exponents to the (n,) logarithms of their rows' sums, which exponentials alone may be too small for."""
    peak = tl.max(x, 1)
    peak = tl.where(peak > float('-inf'), peak, 0)
    return peak + tl.log(tl.sum(tl.exp(x - peak[:, None]), 1))


@triton.jit
def _add_rows(peak, total, x):
    """(k,) largest exponents and sums of the exponentials less those, with the (n, k) exponents of more rows."""
    new = tl.maximum(peak, tl.max(x, 0))
    base = tl.where(new > float('-inf'), new, 0)
    return new, total * tl.exp(peak - base) + tl.sum(tl.exp(x - base[None, :]), 0)


@triton.jit
def _share(first, second, shared, arrived, exchange, part, column, PARTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Two (BLOCK_K,) of each program of a problem to all of them: (PARTS, BLOCK_K) twice.

    A program is at most one exchange ahead of another, so two places for each suffice.
    """
    shared += exchange % 2 * (PARTS * 2 * BLOCK_K)
    tl.store(shared + part * 2 * BLOCK_K + column, first)
    tl.store(shared + (part * 2 + 1) * BLOCK_K + column, second)
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem='release')
    seen = tl.atomic_add(arrived, 0, sem='acquire')
    while seen < PARTS * (exchange + 1):
        seen = tl.atomic_add(arrived, 0, sem='acquire')
    tl.debug_barrier()
    place = tl.arange(0, PARTS)[:, None] * 2 * BLOCK_K + column[None, :]
    return tl.load(shared + place, cache_modifier='.cg'), tl.load(shared + place + BLOCK_K, cache_modifier='.cg')


@triton.jit
def _shared_log_sum(peak, total, shared, arrived, exchange, part, column, PARTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Of all programs: the largest exponent and the sum of the exponentials less that."""
    peaks, totals = _share(peak, total, shared, arrived, exchange, part, column, PARTS, BLOCK_K)
    peak = tl.max(peaks, 0)
    base = tl.where(peak > float('-inf'), peak, 0)
    return peak, tl.sum(totals * tl.exp(peaks - base[None, :]), 0)


@triton.jit(do_not_specialize=['N', 'K', 'num_rows', 'num_iter', 'check_every'])
def _solve(
    cost,
    log_a,
    log_b,
    reg,
    rho_a,
    rho_b,
    scale,
    plan,
    f,
    g,
    done,
    error,
    exponents,
    constants,
    potentials,
    shared,
    arrived,
    N,
    K,
    num_rows,
    num_iter,
    check_every,
    tol,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A part of one problem, ``num_rows`` of its N rows.

    Of a problem: (N, K) cost and plan, (N,) log_a and f, (K,) log_b and g; reg, rho, scale, done and error are numbers.
    Its work space, padded: (N, BLOCK_K) exponents of the plan; (2, N) constants: what the update of a row adds to a
    multiple of its sum, and the change of its potential; (2, N) potentials of the rows, before and after a change. No
    loop reads what it writes: several threads may hold the same row, and one of them would read what another wrote.
    """
    problem = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    padded = num_rows * PARTS
    cost, plan = cost + problem * N * K, plan + problem * N * K
    log_a, f = log_a + problem * N, f + problem * N
    exponents += problem * padded * BLOCK_K
    constants, potentials = constants + problem * 2 * padded, potentials + problem * 2 * padded
    shared, arrived = shared + problem * (2 * PARTS * 2 * BLOCK_K), arrived + problem
    low = float('-inf')
    kind = plan.dtype.element_ty
    inverse = -1 / tl.load(reg + problem)
    rho_a, rho_b = tl.load(rho_a + problem), tl.load(rho_b + problem)
    power_a, power_b = 1 - 1 / (rho_a + 1), 1 - 1 / (rho_b + 1)
    some_rows, column = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    in_k = column < K
    mass_b = tl.load(log_b + problem * K + column, mask=in_k, other=low)
    has_b = mass_b > low
    first_row = part * num_rows
    exchange = 0 * num_iter

    # Potentials that make the largest entry of each row and column of the kernel about 1.
    peak = tl.full([BLOCK_K], low, tl.float64)
    for start in range(first_row, first_row + num_rows, BLOCK_N):
        row = start + some_rows
        in_n = row < N
        mass_a = tl.load(log_a + row, mask=in_n, other=low)
        inside = in_n[:, None] & has_b[None, :]
        x = tl.load(cost + row[:, None] * K + column[None, :], mask=inside, other=0).to(tl.float64) * inverse
        x = tl.where(inside, x, low)
        of_row = -tl.max(x, 1)
        of_row = tl.where((mass_a > low) & (of_row < float('inf')), of_row, low)
        tl.store(potentials + row, of_row)
        tl.store(constants + padded + row, tl.where(in_n, 0, low).to(kind))
        peak = tl.maximum(peak, tl.max(x + of_row[:, None], 0))
    if PARTS > 1:
        peaks, same = _share(peak, peak, shared, arrived, exchange, part, column, PARTS, BLOCK_K)
        peak = tl.max(peaks, 0)
        exchange += 1
    of_column = tl.where(peak > low, -peak, low)
    tl.debug_barrier()

    iteration, largest, going = 0 * num_iter, tl.full([], float('inf'), tl.float64), num_iter > 0
    origin, saved, last_step = of_column, of_column, tl.zeros([BLOCK_K], tl.float64)
    count, leapt, error_before, move = 0 * num_iter, num_iter < 0, largest, tl.full([], 0, tl.float64)
    before, after = potentials, potentials + padded
    while going:
        # The exponents of the plan, and the largest change that the next update would make.
        peak_b, total_b = tl.full([BLOCK_K], low, kind), tl.zeros([BLOCK_K], kind)
        largest = tl.full([], 0, tl.float64)
        for start in range(first_row, first_row + num_rows, BLOCK_N):
            row = start + some_rows
            in_n = row < N
            mass_a = tl.load(log_a + row, mask=in_n, other=low)
            of_row = tl.load(before + row) + tl.load(constants + padded + row).to(tl.float64) + move
            tl.store(after + row, of_row)
            inside = (mass_a > low)[:, None] & has_b[None, :]
            x = tl.load(cost + row[:, None] * K + column[None, :], mask=inside, other=0).to(tl.float64) * inverse
            x = tl.where(inside, x + of_row[:, None] + of_column[None, :], low).to(kind)
            tl.store(exponents + row[:, None] * BLOCK_K + column[None, :], x)
            constant = tl.where(mass_a > low, power_a * mass_a + (power_a - 1) * of_row, low)
            tl.store(constants + row, constant.to(kind))
            log_sum = _log_sum(x)
            peak_b, total_b = _add_rows(peak_b, total_b, x)
            update = tl.abs(constant - power_a * log_sum.to(tl.float64))
            largest = tl.maximum(largest, tl.max(tl.where(mass_a > low, update, 0), 0))
        log_columns = peak_b.to(tl.float64) + tl.log(total_b.to(tl.float64))
        if PARTS > 1:
            of_all = tl.zeros([BLOCK_K], tl.float64) + largest
            log_sums, all_largest = _share(log_columns, of_all, shared, arrived, exchange, part, column, PARTS, BLOCK_K)
            log_columns, largest = _log_sum(tl.trans(log_sums)), tl.max(tl.max(all_largest, 0), 0)
            exchange += 1
        constant_b = tl.where(has_b, power_b * mass_b + (power_b - 1) * of_column, low)
        update = tl.abs(constant_b - power_b * log_columns)
        largest = tl.maximum(largest, tl.max(tl.where(has_b, update, 0), 0))
        before, after = after, before
        tl.debug_barrier()
        going = (iteration < num_iter) & ((iteration == 0) | (largest > tol))
        if going:
            steps = tl.minimum(check_every, num_iter - iteration)
            iteration += steps
            # Leap to where g would converge if each block of iterations moved it by the same part of the last one, and
            # back if that has not made the error smaller.
            step = tl.where(has_b, of_column - origin, 0)
            ratio = tl.sum(step * last_step, 0) / tl.maximum(tl.sum(last_step * last_step, 0), 1e-300)
            ratio = tl.minimum(ratio, LARGEST_PART)
            back = leapt & (largest > error_before)
            leapt = (count >= 2) & (ratio > SMALLEST_PART) & (back == 0)
            leap = tl.where(leapt, step * (ratio / (1 - ratio)), tl.zeros([BLOCK_K], tl.float64))
            leap = tl.where(back, tl.where(has_b, saved - of_column, 0), leap)
            saved = tl.where(leapt, of_column, saved)
            origin, last_step, error_before = of_column + leap, step, largest
            count = tl.where(leapt | back, 1, count + 1)
            change_b = tl.where(has_b, leap, low).to(kind)
            for _step in range(steps):
                peak_b, total_b = tl.full([BLOCK_K], low, kind), tl.zeros([BLOCK_K], kind)
                for start in range(first_row, first_row + num_rows, BLOCK_N):
                    row = start + some_rows
                    x = tl.load(exponents + row[:, None] * BLOCK_K + column[None, :])
                    log_sum = _log_sum(x + change_b[None, :])
                    constant = tl.load(constants + row)
                    change_a = tl.where(constant > low, constant - power_a.to(kind) * log_sum, low)
                    tl.store(constants + padded + row, change_a)
                    peak_b, total_b = _add_rows(peak_b, total_b, x + change_a[:, None])
                if PARTS > 1:
                    peak, total = _shared_log_sum(
                        *(peak_b.to(tl.float64), total_b.to(tl.float64), shared, arrived, exchange, part, column),
                        *(PARTS, BLOCK_K),
                    )
                    peak_b, total_b = peak.to(kind), total.to(kind)
                    exchange += 1
                log_sum_b = peak_b + tl.log(total_b)
                change_b = tl.where(has_b, constant_b.to(kind) - power_b.to(kind) * log_sum_b, low)
            of_column = tl.where(has_b, of_column + change_b.to(tl.float64), low)
            tl.debug_barrier()

            # The best translation of both sides, unless both marginals are constraints.
            total = 1 / (1 / rho_a + 1 / rho_b)
            part_a = tl.where((rho_a > 0) & (rho_a < float('inf')), 1 / rho_a, 0.0)
            part_b = tl.where((rho_b > 0) & (rho_b < float('inf')), 1 / rho_b, 0.0)
            peak_a, total_a = tl.full([], low, tl.float64), tl.full([], 0, tl.float64)
            for start in range(first_row, first_row + num_rows, BLOCK_N):
                row = start + some_rows
                in_n = row < N
                mass_a = tl.load(log_a + row, mask=in_n, other=low)
                of_row = tl.load(before + row) + tl.load(constants + padded + row).to(tl.float64)
                x = tl.where(mass_a > low, mass_a - part_a * of_row, low)
                new = tl.maximum(peak_a, tl.max(x, 0))
                base = tl.where(new > low, new, 0)
                total_a = total_a * tl.exp(peak_a - base) + tl.sum(tl.exp(x - base), 0)
                peak_a = new
            if PARTS > 1:
                none = tl.zeros([BLOCK_K], tl.float64)
                peak, sum_a = _shared_log_sum(
                    none + peak_a, none + total_a, shared, arrived, exchange, part, column, PARTS, BLOCK_K
                )
                peak_a, total_a = tl.max(peak, 0), tl.max(sum_a, 0)
                exchange += 1
            x = tl.where(has_b, mass_b - part_b * of_column, low)
            base = tl.max(x, 0)
            base = tl.where(base > low, base, 0)
            gap = peak_a + tl.log(total_a) - base - tl.log(tl.sum(tl.exp(x - base), 0))
            move = tl.where((total < float('inf')) & (tl.abs(gap) < float('inf')), total * gap, 0)
            of_column -= move

    factor = tl.load(scale + problem)
    for start in range(first_row, first_row + num_rows, BLOCK_N):
        row = start + some_rows
        tl.store(f + row, tl.load(before + row), mask=row < N)
        x = tl.load(exponents + row[:, None] * BLOCK_K + column[None, :])
        mask = (row < N)[:, None] & in_k[None, :]
        tl.store(plan + row[:, None] * K + column[None, :], tl.exp(x) * factor, mask=mask)
    if part == 0:
        tl.store(g + problem * K + column, of_column, mask=in_k)
        tl.store(done + problem, iteration.to(tl.int64))
        tl.store(error + problem, largest)
