"""Numbers of a study: means with 95 % intervals over replicates, paired comparisons, and verdicts on claims."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from scipy.stats import t as student
from study_file import Run, Study

LEVEL = 0.95
Results = dict[Run, dict]


class Estimate(NamedTuple):
    """A mean with its interval; ``low`` and ``high`` are None where one replicate, or none of a data set, is all."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Verdict(NamedTuple):
    """What the results say of a claim; ``seen`` is None where there are none."""

    text: str
    where: str
    seen: bool | None
    reason: str


def estimate(strata: list[list[float]]) -> Estimate | None:
    """Mean and interval of values in strata (data sets) of equal weight; None without values.

    With one stratum, Student's t. With several, the mean of their means, whose variance is the sum of theirs, with
    Welch and Satterthwaite's degrees of freedom.
    """
    strata = [values for values in strata if values]
    if not strata:
        return None
    n = sum(map(len, strata))
    mean = statistics.fmean(map(statistics.fmean, strata))
    if min(map(len, strata)) < 2:
        return Estimate(mean, None, None, n)
    parts = [statistics.variance(values) / len(values) / len(strata) ** 2 for values in strata]
    variance = sum(parts)
    if variance == 0:
        return Estimate(mean, mean, mean, n)
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, strata))
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half, n)


def done(results: Results, arm: str, data: str) -> dict[tuple[int, int], dict]:
    """The finished runs of an arm on a data set, by replicate, in order."""
    found = {
        run.replicate: line
        for run, line in results.items()
        if (run.arm, run.data) == (arm, data) and line['status'] == 'done'
    }
    return dict(sorted(found.items()))


def values(results: Results, arm: str, data: str, metric: str) -> list[float]:
    """A metric of all finished runs that have it."""
    found = (line['final'].get(metric) for line in done(results, arm, data).values())
    return [value for value in found if value is not None]


def paired(
    results: Results,
    data: str,
    arm: str,
    than: str,
    value: Callable[[dict, dict], float | None],
) -> list[float]:
    """``value`` of each pair of finished runs of two arms with the same seed and fold, where it has one."""
    ours, theirs = done(results, arm, data), done(results, than, data)
    found = (value(line, theirs[replicate]) for replicate, line in ours.items() if replicate in theirs)
    return [number for number in found if number is not None]


def difference(metric: str, than_metric: str | None = None) -> Callable[[dict, dict], float | None]:
    """Our metric less theirs."""

    def value(ours: dict, theirs: dict) -> float | None:
        a, b = ours['final'].get(metric), theirs['final'].get(than_metric or metric)
        return None if a is None or b is None else a - b

    return value


def ratio(metric: str, than_metric: str | None = None) -> Callable[[dict, dict], float | None]:
    """Our metric over theirs."""

    def value(ours: dict, theirs: dict) -> float | None:
        a, b = ours['final'].get(metric), theirs['final'].get(than_metric or metric)
        return None if a is None or not b else a / b

    return value


def epochs_to_reach(ours: dict, theirs: dict) -> float:
    """The first epoch at whose end our AP is at least their final one; infinite if there is none."""
    goal = theirs['curve'][-1][1]
    return next((place for place, ap in ours['curve'] if ap >= goal), math.inf)


def part_of_epochs(ours: dict, theirs: dict) -> float:
    """``epochs_to_reach`` as a part of their epochs."""
    return epochs_to_reach(ours, theirs) / theirs['epochs']


def judge(study: Study, results: Results) -> list[Verdict]:
    """A verdict on each claim of the study; one for all data sets together if it is ``pooled``, else one for each."""
    verdicts = []
    for claim in study.claims:
        names = list(claim.get('data', study.data))
        groups = [names] if claim.get('pooled') else [[name] for name in names]
        verdicts += [_judge(study, results, claim, group) for group in groups]
    return verdicts


def _judge(study: Study, results: Results, claim: dict, data: list[str]) -> Verdict:
    arm, metric = claim['arm'], claim.get('metric', 'AP')
    than, than_metric = claim.get('than', study.baseline_of(arm)), claim.get('than_metric')
    value = {
        'difference': difference(metric, than_metric),
        'ratio': ratio(metric, than_metric),
        'epochs': part_of_epochs,
    }[claim['kind']]
    strata = [paired(results, name, arm, than, value) for name in data]
    where = ' + '.join(data)
    if not all(strata):
        return Verdict(claim['text'], where, None, 'no runs to compare yet')
    never = sum(map(math.isinf, sum(strata, [])))
    if never:
        return Verdict(claim['text'], where, False, f'{never} of {sum(map(len, strata))} runs never reach that AP')
    found = estimate(strata)
    assert found is not None
    bound, rising = (claim['at_least'], True) if 'at_least' in claim else (claim['at_most'], False)
    sign = 1 if rising else -1
    worst, best = (found.low, found.high) if rising else (found.high, found.low)
    how = claim.get('judge', 'interval')
    judged = {'interval': worst, 'mean': found.mean, 'reach': best}[how]
    reason = (
        f'{show(found, signed=claim["kind"] == "difference")}, claimed at {"least" if rising else "most"} {bound:g}'
    )
    if judged is None:
        return Verdict(claim['text'], where, None, f'{reason}; one pair of runs, which has no interval')
    seen = sign * judged >= sign * bound
    if not seen and sign * found.mean >= sign * bound:
        reason += '; the mean meets it, the interval does not'
    return Verdict(claim['text'], where, seen, reason)


def show(found: Estimate | None, signed: bool = False) -> str:
    """An estimate in words, as '0.655 (0.640 to 0.670)'."""
    if found is None:
        return '-'
    style = '+.3f' if signed else '.3f'
    if found.low is None:
        return f'{found.mean:{style}}'
    return f'{found.mean:{style}} ({found.low:{style}} to {found.high:{style}})'
