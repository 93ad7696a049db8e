"""tools/study.py report: intervals, verdicts and tables, against scipy and by hand."""

import cv2
import numpy as np
import pytest
from scipy import stats
from test_study import a_line, call, load_study, study_results, write_study

import study_stats  # isort: skip  (test_study puts tools/ on the path)

pytestmark = pytest.mark.slow  # every study is read with all its configs


def keep(study, lines):
    for line in lines:
        study_results.append_result(study.results, line)


def report(study, monkeypatch, name='docs'):
    call(monkeypatch, 'report', study.path, '--out', study.path.parent / name)
    return (study.path.parent / name / 'evidence.md').read_text()


def row(page, arm):
    """The cells of an arm in the first table that has it."""
    (first, *_) = (line for line in page.splitlines() if line.startswith(f'| {arm} | '))
    return [cell.strip() for cell in first.strip('|').split('|')]


ARMS = {
    name: dict(config='configs/color_boxes/gfl_tiny_atss.py', options={'model.test_cfg.max_per_img': limit})
    for name, limit in (('stock', 100), ('soft', 101))
}
STOCK, SOFT = (0.40, 0.42, 0.47), (0.45, 0.46, 0.53)


@pytest.fixture
def two_arms(tmp_path):
    """A study of two arms and three seeds with results."""
    study = load_study(write_study(tmp_path, arms=ARMS, seeds=[0, 1, 2]))
    keep(study, [a_line(study, 'stock', seed, ap) for seed, ap in enumerate(STOCK)])
    keep(study, [a_line(study, 'soft', seed, ap) for seed, ap in enumerate(SOFT)])
    return study


def test_interval_is_students():
    values = [0.4, 0.43, 0.41, 0.47]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = study_stats.estimate([values])
    np.testing.assert_allclose(found[:3], (np.mean(values), low, high), rtol=1e-12)
    assert found.n == 4 and study_stats.estimate([]) is None
    assert study_stats.estimate([[0.4]]) == (0.4, None, None, 1)


def test_interval_of_pooled_data_sets_is_welchs():
    one, two = [0.4, 0.43, 0.41, 0.47], [0.1, -0.2, 0.05]
    interval = stats.ttest_ind(one, np.negative(two), equal_var=False).confidence_interval(0.95)
    found = study_stats.estimate([one, two])
    np.testing.assert_allclose((found.low, found.high), np.array(interval) / 2, rtol=1e-9)
    np.testing.assert_allclose(found.mean, (np.mean(one) + np.mean(two)) / 2)


def test_table_has_means_and_paired_differences_with_intervals(two_arms, monkeypatch):
    page = report(two_arms, monkeypatch)
    cells = row(page, 'soft')
    paired = np.subtract(SOFT, STOCK)
    low, high = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
    assert cells[:2] == ['soft', '3'] and cells[2].startswith('0.480 (')
    assert cells[3] == f'**{paired.mean():+.3f} ({low:+.3f} to {high:+.3f})**'
    assert row(page, 'stock')[3] == 'baseline'
    assert cells[7:] == ['2.0', '0.250', '500']
    picture = cv2.imread(str(two_arms.path.parent / 'docs/images/evidence_tiny.png'))
    assert picture is not None and (picture == 255).all(2).mean() > 0.5


def test_report_is_the_same_twice_and_in_any_order_of_the_lines(two_arms, monkeypatch):
    page = report(two_arms, monkeypatch)
    assert report(two_arms, monkeypatch, 'again') == page
    lines = two_arms.results.read_text().splitlines(keepends=True)
    two_arms.results.write_text(''.join(reversed(lines)))
    assert report(two_arms, monkeypatch, 'reversed') == page


def test_curves_are_plotted_and_their_means_compared(tmp_path, monkeypatch):
    study = load_study(write_study(tmp_path, arms=ARMS, seeds=[0, 1, 2], curves=['instability/last']))
    stock, soft = [[8, 6], [9, 5], [7, 7]], [[4, 4], [5, 1], [2, 2]]
    for arm, curves in (('stock', stock), ('soft', soft)):
        for seed, (second, third) in enumerate(curves):
            curve = {'instability/last': [[2, second], [3, third]]}
            keep(study, [{**a_line(study, arm, seed, 0.4), 'curves': curve}])
    page = report(study, monkeypatch)
    _, table = page.split('Mean over the epochs:')
    change = np.mean(soft, 1) - np.mean(stock, 1)
    low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert row(table, 'stock')[1:] == ['7.000 (7.000 to 7.000)', 'baseline']
    assert row(table, 'soft')[2] == f'{change.mean():+.3f} ({low:+.3f} to {high:+.3f})'
    assert '![AP and instability/last over the epochs' in table
    wide, narrow = (
        cv2.imread(str(path)).shape[1]
        for path in (tmp_path / 'docs/images/evidence_tiny.png', _without_curves(tmp_path, study, monkeypatch))
    )
    assert wide == 1.5 * narrow  # three panels in place of two


def _without_curves(tmp_path, study, monkeypatch):
    """The picture of the same study without its curves; results without curves do not count for one that has some."""
    (tmp_path / 'plain').mkdir()
    plain = load_study(write_study(tmp_path / 'plain', arms=ARMS, seeds=[0, 1, 2]))
    lines = [{**a_line(plain, 'stock', seed, 0.4)} for seed in range(3)]
    keep(plain, lines)
    report(plain, monkeypatch)
    assert study_results.sort_results(study, lines) == ({}, lines)
    return tmp_path / 'plain/docs/images/evidence_tiny.png'


def test_results_of_another_version_are_shown_as_such(two_arms, monkeypatch):
    page = report(two_arms, monkeypatch)
    assert '- Code: version 9.9, checksum 0123456789ab, 6 runs.' in page
    keep(two_arms, [{**a_line(two_arms, 'soft', 1, 0.46), 'code': 'fedcba987654', 'commit': 'abc'}])
    page = report(two_arms, monkeypatch)
    assert '- Code a: version 9.9, checksum 0123456789ab, 5 runs.' in page
    assert '- Code b: version 9.9, commit abc, checksum fedcba987654, 1 runs.' in page
    assert row(page, 'soft')[-1] == '2 a, 1 b' and row(page, 'stock')[-1] == '3 a'


def test_results_of_another_config_are_left_out_and_counted(two_arms, monkeypatch):
    keep(two_arms, [{**a_line(two_arms, 'soft', 1, 0.99), 'config_hash': 'another'}])
    page = report(two_arms, monkeypatch)
    assert '- 1 results are of other configs than the study has now, and are left out.' in page
    assert row(page, 'soft')[2].startswith('0.480 (')


def test_last_line_of_a_run_counts(two_arms, monkeypatch):
    failed = dict(status='failed', reason='KeyError: 3')
    keep(two_arms, [{**a_line(two_arms, 'soft', 0), **failed}])
    page = report(two_arms, monkeypatch)
    assert '- 5 of 6 runs are done, 1 failed.' in page and '- soft, boxes, seed 0: KeyError: 3' in page
    assert row(page, 'soft')[1] == '2'
    keep(two_arms, [a_line(two_arms, 'soft', 0, 0.45)])
    assert '- 6 of 6 runs are done.' in report(two_arms, monkeypatch)


@pytest.mark.parametrize(
    ('claim', 'seen', 'reason'),
    [
        (dict(kind='difference', at_least=0), True, r'+0.050 (+0.025 to +0.075), claimed at least 0'),
        (dict(kind='difference', at_least=0.04), False, 'the mean meets it, the interval does not'),
        (dict(kind='difference', at_least=0.04, judge='mean'), True, '+0.050'),
        (dict(kind='difference', at_least=0.07, judge='reach'), True, '+0.050'),
        (dict(kind='difference', at_most=0), False, 'claimed at most 0'),
        (dict(kind='ratio', metric='AP_without_nms', than='soft', than_metric='AP', at_least=0.4), True, '0.500'),
        (dict(kind='ratio', metric='AP_without_nms', than='soft', than_metric='AP', at_least=0.9), False, '0.500'),
        (dict(kind='epochs', at_most=0.6), False, '1.000'),
    ],
)
def test_verdict_goes_by_the_interval_unless_it_says_otherwise(tmp_path, two_arms, claim, seen, reason):
    study = load_study(write_study(tmp_path, arms=ARMS, claims=[dict(text='so', arm='soft', **claim)], seeds=[0, 1, 2]))
    results, _ = study_results.sort_results(study, study_results.read_results(study.results)[0])
    (verdict,) = study_stats.judge(study, results)
    assert verdict.seen is seen and reason in verdict.reason


def test_epochs_are_the_first_that_reach_the_baselines_last_ap():
    base = dict(curve=[[1, 0.1], [2, 0.3], [3, 0.2]], epochs=3)
    assert study_stats.epochs_to_reach(dict(curve=[[1, 0.1], [2, 0.21], [3, 0.1]]), base) == 2
    assert study_stats.part_of_epochs(dict(curve=[[1, 0.2]]), base) == 1 / 3
    assert study_stats.epochs_to_reach(dict(curve=[[1, 0.1]]), base) == float('inf')


def test_claim_on_what_never_reaches_it_is_not_seen(tmp_path, monkeypatch):
    claims = [dict(text='soft is as fast', kind='epochs', arm='soft', at_most=0.6)]
    study = load_study(write_study(tmp_path, arms=ARMS, claims=claims))
    assert '| soft is as fast | boxes | open | no runs to compare yet |' in report(study, monkeypatch)
    keep(study, [a_line(study, 'stock', 0, 0.5), a_line(study, 'soft', 0, 0.4)])
    page = report(study, monkeypatch)
    assert '| soft is as fast | boxes | **not seen** | 1 of 1 runs never reach that AP |' in page
    assert row(page, 'soft')[7] == 'never'
