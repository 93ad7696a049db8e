"""Random hostile input never crashes and is never silently wrong; and the judge of that can itself fail."""

from collections import Counter

import hostile
import pytest
import torch

from uotod_mmdet import losses

CASES = 2000


@pytest.mark.slow
def test_hostile_input_gives_right_values_or_an_error_that_names_the_argument():
    results = hostile.run_cases(seed=0, numbers=range(CASES))
    assert len(results) == CASES
    faults = [result for result in results if result['fault']]
    assert not faults, '\n' + hostile.table(0, results)
    cases = Counter(result['kind'] for result in results)
    succeeded = Counter(result['kind'] for result in results if result['legal'] and not result['refused'])
    assert cases.keys() == hostile.KINDS.keys()
    assert all(succeeded[kind] >= 0.3 * count for kind, count in cases.items()), succeeded


def dice() -> hostile.Dice:
    return hostile.Dice(0, 0)


@pytest.mark.parametrize(
    'wrong, fault',
    [
        (lambda x: x * 1.1, 'wrong loss: another value'),
        (lambda x: x[:-1], 'wrong loss: another shape'),
        (lambda x: x * float('nan'), 'not finite: loss'),
        (lambda x: x.detach() + 2 * (x - x.detach()), 'wrong gradient of x: another value'),
        (lambda x: x + (0 * x).sqrt(), 'not finite: gradient of x'),
    ],
)
def test_the_judge_sees_wrong_values_and_gradients(wrong, fault):
    given = dict(x=torch.rand(4).requires_grad_())
    case = hostile.Case(lambda x: dict(loss=wrong(x)), given, 'x', formula=lambda x: dict(loss=x * 1))
    found = hostile.fault_of_answer(dice(), case, *hostile.answer_of(case.run, given))
    assert found == fault


def error_of(call) -> Exception:
    with pytest.raises(Exception) as raised:
        call()
    return raised.value


def test_the_judge_takes_only_errors_of_ours_that_name_an_argument():
    pred = torch.zeros(3, 2)
    ours = error_of(lambda: losses.quality_focal_loss(pred, torch.zeros(3, 3)))
    assert hostile.fault_of_error(ours, 'target') == ''
    assert 'names no argument' in hostile.fault_of_error(ours, 'reg|num_iter')
    assert 'IndexError' in hostile.fault_of_error(error_of(lambda: pred[5]), 'index')
    assert 'ValueError' in hostile.fault_of_error(error_of(lambda: int('pred')), 'pred')


@pytest.mark.slow
def test_a_case_is_made_again_from_its_seed_and_number():
    for number in range(30):
        (kind, one, first), (_, other, second) = (hostile.make_case(3, number) for _ in range(2))
        assert one.legal == other.legal and kind in hostile.KINDS
        for (name, a), (_, b) in zip(hostile.tensors_in(first.given, ''), hostile.tensors_in(second.given, '')):
            assert a.stride() == b.stride() and hostile._bits(a) == hostile._bits(b), name
