"""Ops as torch.library asks for them, and traced: torch.compile, torch.export and torch.func give what eager gives."""

import pytest
import torch

from uotod_mmdet import ops
from uotod_mmdet.ops import native
from uotod_mmdet.ops.box_losses import box_losses_gradient_op, box_losses_op
from uotod_mmdet.ops.focal_rows import focal_rows_op
from uotod_mmdet.ops.pair_costs import KINDS, pair_costs_op
from uotod_mmdet.ops.registration import HAS_CUSTOM_OPS
from uotod_mmdet.ops.sinkhorn import sinkhorn_op
from uotod_mmdet.ops.softmax_rows import softmax_rows_gradient_op, softmax_rows_op

pytestmark = pytest.mark.skipif(not HAS_CUSTOM_OPS, reason='torch.library has custom ops since torch 2.4')

ROWS = torch.tensor([0, 0, 2, 5, 5])
PLACES = torch.tensor([1, 0, 3, 2, 2])
NONE = torch.zeros(0, dtype=torch.long)


def sinkhorn_inputs(dtype, rho_b=torch.inf, newton_after=40, relative=False):
    cost = torch.rand(2, 7, 4, dtype=dtype)
    a, b = torch.full((2, 7), 1 / 7, dtype=dtype), torch.full((2, 4), 1 / 4, dtype=dtype)
    weights = torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), torch.inf, dtype=torch.float64)
    weights += (torch.full((2,), rho_b, dtype=torch.float64), torch.ones(2, dtype=dtype))
    return cost, a, b, *weights, relative, 100, 10, newton_after, 1e-4, 10.0


def boxes(*shape, dtype):
    corner = torch.rand(*shape, 2, dtype=dtype) * 50
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, dtype=dtype) * 40], -1)


def pair_cost_inputs(dtype, kinds=range(len(KINDS)), pred_mask=True):
    labels, gt_mask = torch.randint(5, (2, 3)), torch.tensor([[True, True, True], [True, False, False]])
    compared = boxes(2, 7, dtype=dtype), boxes(2, 3, dtype=dtype), torch.randn(2, 7, 5, dtype=dtype), labels
    compared += torch.full((2, 4), 100, dtype=dtype), torch.rand(2, 7, 3, dtype=dtype)
    if not list(kinds):
        compared = (None,) * 6
    numbers = [1.5, 1e-3, 0.25, 2.0, 1.0] * len(list(kinds))
    mask = torch.rand(2, 7) < 0.8 if pred_mask else None
    return list(kinds), numbers, *compared, gt_mask, mask, torch.zeros(2, 7, dtype=dtype), 0.5


def focal_inputs(dtype, gradient, index=ROWS.unique() * 5 + 1):
    slopes = torch.rand(len(index), dtype=dtype) if gradient else None
    logits = torch.randn(6, 5, dtype=dtype, requires_grad=gradient)
    return logits, 2.0, torch.rand(6, dtype=dtype), index, torch.rand(len(index), dtype=dtype), slopes


def softmax_inputs(dtype, requires_grad=True, rows=ROWS, labels=PLACES):
    scores = torch.randn(6, 5, dtype=dtype, requires_grad=requires_grad)
    return scores, 4, torch.rand(6, dtype=dtype), rows, labels, torch.rand(len(rows), dtype=dtype)


def box_inputs(dtype, eps, sizes=True, requires_grad=True, rows=ROWS, gts=PLACES):
    preds = (boxes(6, dtype=dtype) / (100 if sizes else 1)).requires_grad_(requires_grad)
    size = torch.full((2, 4), 100, dtype=dtype) if sizes else None
    return preds, boxes(4, dtype=dtype), size, rows, gts, rows // 3, torch.rand(len(rows), dtype=dtype), 2.0, eps


def softmax_gradient_inputs(dtype, rows=ROWS, labels=PLACES):
    given = softmax_inputs(dtype, False, rows, labels)
    return *given, softmax_rows_op(*given)[1], torch.rand(6, dtype=dtype)


def box_gradient_inputs(dtype, *args, **kwargs):
    given = box_inputs(dtype, *args, requires_grad=False, **kwargs)
    return *given, torch.rand(len(given[6]), dtype=dtype)


CASES = {
    'sinkhorn, balanced': (sinkhorn_op, sinkhorn_inputs),
    'sinkhorn, unbalanced, relative': (sinkhorn_op, lambda dtype: sinkhorn_inputs(dtype, 2.0, -1, True)),
    'pair costs, all kinds': (pair_costs_op, pair_cost_inputs),
    'pair costs, no mask': (pair_costs_op, lambda dtype: pair_cost_inputs(dtype, (2, 4), pred_mask=False)),
    'pair costs, no terms': (pair_costs_op, lambda dtype: pair_cost_inputs(dtype, ())),
    'focal rows, gradient': (focal_rows_op, lambda dtype: focal_inputs(dtype, True)),
    'focal rows, no gradient': (focal_rows_op, lambda dtype: focal_inputs(dtype, False)),
    'focal rows, no entries': (focal_rows_op, lambda dtype: focal_inputs(dtype, True, NONE)),
    'softmax rows, gradient': (softmax_rows_op, softmax_inputs),
    'softmax rows, no gradient': (softmax_rows_op, lambda dtype: softmax_inputs(dtype, False)),
    'softmax rows, no pairs': (softmax_rows_op, lambda dtype: softmax_inputs(dtype, True, NONE, NONE)),
    'gradient of softmax rows': (softmax_rows_gradient_op, softmax_gradient_inputs),
    'gradient of softmax rows, no pairs': (softmax_rows_gradient_op, lambda d: softmax_gradient_inputs(d, NONE, NONE)),
    'L1': (box_losses_op, lambda dtype: box_inputs(dtype, -1.0)),
    'L1 in pixels': (box_losses_op, lambda dtype: box_inputs(dtype, -1.0, sizes=False)),
    'GIoU': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6)),
    'GIoU in pixels, no gradient': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6, False, False)),
    'GIoU, no pairs': (box_losses_op, lambda dtype: box_inputs(dtype, 1e-6, True, True, NONE, NONE)),
    'gradient of L1': (box_losses_gradient_op, lambda dtype: box_gradient_inputs(dtype, -1.0)),
    'gradient of GIoU in pixels': (box_losses_gradient_op, lambda dtype: box_gradient_inputs(dtype, 1e-6, sizes=False)),
}


@pytest.mark.parametrize('way', ['compiled part', 'without compiled part', 'float64'])
@pytest.mark.parametrize('case', CASES)
def test_ops_are_as_torch_library_asks(case, way, monkeypatch):
    if way == 'compiled part' and native.library is None:
        pytest.skip('no compiled part')
    if way == 'without compiled part':
        monkeypatch.setattr(native, 'library', None)
    op, inputs = CASES[case]
    torch.library.opcheck(op, inputs(torch.float64 if way == 'float64' else torch.float32))
