"""The report of studies: a Markdown page of tables and verdicts, from committed results alone."""

import math
import statistics
import string
from collections import Counter
from pathlib import Path

from study_file import Study
from study_plots import draw_study
from study_results import read_results, sort_results
from study_stats import (
    Results,
    difference,
    done,
    epochs_to_reach,
    estimate,
    judge,
    paired,
    show,
    values,
)

LARGEST_CLASS_TABLE = 8
LOW_AP = 0.05
HEAD = """# Evidence

Made by `python tools/study.py report` from the results in `studies/results`, one line a run. `python tools/study.py run
studies/NAME.py` does the runs that are missing. AP and AR are COCO's, after the last epoch.

In brackets: 95 % intervals over the seeds or folds, Student's t. Differences are paired: a run less the run of its
baseline with the same seed and fold; bold where the interval leaves out 0. Epochs: the first at whose end AP is at
least the baseline's last AP, mean over the runs. Seconds an iteration: the median of a run, mean over the runs; they
compare within one machine only.
"""


def write_report(studies: list[Study], out: Path) -> Path:
    """Write ``out/evidence.md`` and ``out/images/evidence_<study>.png``; the path of the page."""
    sections = [HEAD]
    sections += [_section(study, out) for study in studies]
    page = out / 'evidence.md'
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text('\n'.join(sections))
    return page


def _section(study: Study, out: Path) -> str:
    lines, notice = read_results(study.results)
    results, others = sort_results(study, lines)
    total = len(study.runs())
    failed = {run: line for run, line in results.items() if line['status'] == 'failed'}
    codes = _codes(study, results)
    text = [f'## {study.title}', '', study.question, '']
    text += [f'- {len(results) - len(failed)} of {total} runs are done{f", {len(failed)} failed" if failed else ""}.']
    if notice:
        text += [f'- {notice}']
    if others:
        text += [f'- {len(others)} results are of other configs than the study has now, and are left out.']
    text += _code_lines(codes, results)
    text += _data_lines(study, results)
    devices = Counter(line['device'] for line in results.values() if 'device' in line)
    text += [
        f'- On a GPU ({name}): {count} runs; peak MB are the memory of the GPU.' for name, count in devices.items()
    ]
    if failed:
        text += ['', 'Failed runs:', '']
        text += [f'- {run}: {failed[run]["reason"]}' for run in study.runs() if run in failed]
    verdicts = judge(study, results)
    if verdicts:
        text += ['', '| claim | data | verdict | by how much |', '|' + ' --- |' * 4]
        words = {True: '**seen here**', False: '**not seen**', None: 'open'}
        text += [f'| {v.text} | {v.where} | {words[v.seen]} | {v.reason} |' for v in verdicts]
    if len(results) > len(failed):
        for name in study.data:
            text += ['', f'### {study.title}: {name}', '', *_table(study, results, name, codes)]
            text += _class_table(study, results, name)
            text += _curve_table(study, results, name)
            if max((ap for arm in study.arms for ap in values(results, arm, name, 'AP')), default=1) < LOW_AP:
                text += ['', f'No run reached AP {LOW_AP}: train for longer or on more images before you conclude.']
        image = Path('images') / f'evidence_{study.name}.png'
        draw_study(study, results, out / image)
        drawn = ' and '.join(['AP', *study.curves])
        text += ['', f'![{drawn} over the epochs, mean and 95 % interval]({image})']
    return '\n'.join([*text, ''])


def _codes(study: Study, results: Results) -> dict[str, str]:
    """A letter for each version of the code that made results, in the order of the study's runs."""
    found = dict.fromkeys(results[run]['code'] for run in study.runs() if run in results)
    return {code: string.ascii_lowercase[index % 26] for index, code in enumerate(found)}


def _code_lines(codes: dict[str, str], results: Results) -> list[str]:
    text = []
    for code, letter in codes.items():
        lines = [line for line in results.values() if line['code'] == code]
        commits = ', '.join(sorted({line['commit'] for line in lines if 'commit' in line}))
        source = f'version {lines[0]["version"]}{f", commit {commits}" if commits else ""}, checksum {code}'
        text.append(f'- Code{f" {letter}" if len(codes) > 1 else ""}: {source}, {len(lines)} runs.')
    if len(codes) > 1:
        text.append('- The last column of the tables says which code made the runs of an arm.')
    return text


def _data_lines(study: Study, results: Results) -> list[str]:
    """What to say of data sets that changed between runs."""
    text = []
    for name in study.data:
        counts = Counter(line.get('data_hash') for run, line in results.items() if run.data == name)
        if len(counts) > 1:
            parts = ', '.join(f'{count} runs of {digest}' for digest, count in sorted(counts.items(), key=str))
            text.append(f'- The images or boxes of {name} are not the same in all runs (checksums: {parts}).')
    return text


def _table(study: Study, results: Results, data: str, codes: dict[str, str]) -> list[str]:
    main, *rest = study.metrics
    names = [metric.replace('_without_nms', ' without NMS') for metric in study.metrics]
    heads = ['arm', 'n', names[0], f'{names[0]} less baseline', *names[1:]]
    heads += ['epochs to baseline AP', 's an iteration', 'peak MB']
    if len(codes) > 1:
        heads.append('code')
    text = ['| ' + ' | '.join(heads) + ' |', '|' + ' --- |' * len(heads)]
    for arm in study.arms:
        runs = done(results, arm, data)
        base = study.baseline_of(arm)
        cells = [arm, str(len(runs)), show(estimate([values(results, arm, data, main)]))]
        cells.append('baseline' if arm == base else _difference(results, data, arm, base, main))
        cells += [show(estimate([values(results, arm, data, metric)])) for metric in rest]
        cells += [_epochs(results, data, arm, base)]
        cells += [f'{statistics.fmean(line["seconds_an_iteration"] for line in runs.values()):.3f}' if runs else '-']
        cells += [f'{max(line["peak_mb"] for line in runs.values())}' if runs else '-']
        if len(codes) > 1:
            made = Counter(codes[line['code']] for line in runs.values())
            cells.append(', '.join(f'{count} {letter}' for letter, count in sorted(made.items())) or '-')
        text.append('| ' + ' | '.join(cells) + ' |')
    return text


def _difference(results: Results, data: str, arm: str, base: str, metric: str) -> str:
    found = estimate([paired(results, data, arm, base, difference(metric))])
    words = show(found, signed=True)
    clear = found is not None and found.low is not None and (found.low > 0 or found.high < 0)
    return f'**{words}**' if clear else words


def _epochs(results: Results, data: str, arm: str, base: str) -> str:
    found = paired(results, data, arm, base, epochs_to_reach)
    reached = [epoch for epoch in found if math.isfinite(epoch)]
    if not found:
        return '-'
    if not reached:
        return 'never'
    words = f'{statistics.fmean(reached):.1f}'
    return words if len(reached) == len(found) else f'{words} ({len(reached)} of {len(found)} runs)'


def _class_table(study: Study, results: Results, data: str) -> list[str]:
    """AP by class, the mean over the runs, where the data set has few classes."""
    lines = {arm: list(done(results, arm, data).values()) for arm in study.arms}
    names = list(dict.fromkeys(name for found in lines.values() for line in found for name in line['by_class']))
    if not 2 <= len(names) <= LARGEST_CLASS_TABLE:
        return []
    text = ['', 'AP by class:', '', '| arm | ' + ' | '.join(names) + ' |', '|' + ' --- |' * (len(names) + 1)]
    for arm, found in lines.items():
        cells = [[line['by_class'].get(name) for line in found] for name in names]
        kept = [[value for value in cell if value is not None] for cell in cells]
        text.append(f'| {arm} | ' + ' | '.join(f'{statistics.fmean(c):.3f}' if c else '-' for c in kept) + ' |')
    return text


def _curve_table(study: Study, results: Results, data: str) -> list[str]:
    """Each curve's mean over the epochs, by arm, with the paired difference to the baseline."""
    if not study.curves:
        return []

    def mean(line: dict, name: str) -> float:
        return statistics.fmean(value for _, value in line['curves'][name])

    heads = ['arm', *(head for name in study.curves for head in (name, f'{name} less baseline'))]
    text = ['', 'Mean over the epochs:', '', '| ' + ' | '.join(heads) + ' |', '|' + ' --- |' * len(heads)]
    for arm in study.arms:
        base, cells = study.baseline_of(arm), [arm]
        for name in study.curves:
            cells.append(show(estimate([[mean(line, name) for line in done(results, arm, data).values()]])))
            change = paired(
                results, data, arm, base, lambda ours, theirs, name=name: mean(ours, name) - mean(theirs, name)
            )
            cells.append('baseline' if arm == base else show(estimate([change]), signed=True))
        text.append('| ' + ' | '.join(cells) + ' |')
    return text
