"""The kernel of Sinkhorn for GPUs, in Triton's interpreter: runs where Triton is installed, without a GPU."""

import importlib.metadata
import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from packaging.version import Version

CASES = [
    (0.02, None, None),
    (0.005, 1.0, 0.1),
    (0.02, 1e3, 1e-2),
    (0.005, 1e3, 1e-2),
    (0.3, None, 0.1),
    (0.005, 0.1, None),
    (0.02, 0.0, None),
    (0.3, 0.5, 0.0),
]
"""reg and the weights of both marginals."""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('triton') is None or Version(importlib.metadata.version('triton')) < Version('3'),
    reason='needs Triton 3, which runs kernels on a CPU',
)
def test_the_kernel_finds_the_plan():
    # In a process of its own: Triton reads the variable once.
    env = {**os.environ, 'TRITON_INTERPRET': '1'}
    done = subprocess.run([sys.executable, '-W', 'ignore', __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('triton') is None or Version(importlib.metadata.version('triton')) < Version('3'),
    reason='needs Triton 3, which runs kernels on a CPU',
)
def test_the_kernel_compiles_for_a_gpu():
    # What the interpreter lets pass, types that change in a loop, the compiler refuses. No GPU is needed for that.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from uotod_mmdet.ops.sinkhorn_on_gpu import _solve

    shapes = dict(BLOCK_N=8, BLOCK_K=16, PARTS=2)
    integers = 'N', 'K', 'num_rows', 'num_iter', 'check_every'
    types = {
        **dict.fromkeys(_solve.arg_names, '*fp64'),
        **dict.fromkeys(('cost', 'scale', 'plan', 'exponents', 'constants'), '*fp32'),
        **dict.fromkeys(integers, 'i32'),
        **dict.fromkeys(shapes, 'constexpr'),
        **dict(done='*i64', arrived='*i32', tol='fp64'),
    }
    constants = {(_solve.arg_names.index(name),): value for name, value in shapes.items()}
    source = ASTSource(fn=_solve, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=8))
    assert compiled.metadata.shared < 48 * 1024  # bytes, what each GPU has


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs and marginals of five problems.

    Plain; most rows avoid all columns but one; empty sides; no mass at all; all rows avoid all columns but one, whose
    entries of the plan are too small for float32 where the columns' weight is low.
    """
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(5, 300, 9, generator=generator).double()
    cost[1, :250] += 20
    cost[4] += 2
    cost[:, :, -1] = 0.5
    a, b = torch.full((5, 300), 1 / 300).double(), torch.full((5, 9), 1 / 60).double()
    b[:, -1] = 52 / 60
    a[2, 200:], b[2, :3], a[3], b[3] = 0, 0, 0, 0
    total = a.sum(1, keepdim=True).clamp(min=1e-30), b.sum(1, keepdim=True).clamp(min=1e-30)
    return cost, a / total[0], b / total[1]


def main() -> None:
    from uotod_mmdet.ops.sinkhorn_on_gpu import solve
    from uotod_mmdet.ot import sinkhorn

    for seed, (reg, *weights) in enumerate(CASES):
        dtype = torch.float64 if seed == 1 else torch.float32
        cost, a, b = problem(seed)
        given = cost.to(dtype), a.to(dtype), b.to(dtype)
        regs = torch.full((5,), reg, dtype=torch.float64)
        rho = [torch.full_like(regs, math.inf if weight is None else weight / reg) for weight in weights]
        tol = 1e-3
        plan, f, g, done, error = solve(*given, regs, *rho, torch.ones(5, dtype=dtype), 2000, 10, tol)
        exact = sinkhorn(cost, a, b, reg, *weights, num_iter=2000, tol=1e-9)
        assert exact.converged.all()
        assert (error <= tol).all() and (done <= 2000).all(), (weights, error, done)
        distance = (plan - exact.plan).abs().sum((1, 2))
        assert distance.max() < 3e-3, (weights, distance)
        rebuilt = (f[:, :, None] + g[:, None, :] - cost / reg).exp()
        torch.testing.assert_close(plan.double(), rebuilt, rtol=1e-4, atol=1e-7)


if __name__ == '__main__':
    main()
