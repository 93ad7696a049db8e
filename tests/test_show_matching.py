"""The picture and the numbers of tools/show_matching.py."""

import sys
from pathlib import Path

import cv2
import pytest
from test_sinkhorn import FIGURE_PLANS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import show_matching  # noqa: E402


def matrices(text):
    """Named matrices of the printed text."""
    found, name = {}, None
    for line in text.splitlines():
        words = line.split()
        if words and words[0].isdigit() and name:
            found[name].append([float(word) for word in words[1:]])
        elif line and not line.startswith(' ') and 'Picture' not in line:
            name = line
            found[name] = []
    return {name: rows for name, rows in found.items() if rows}


def assert_is_a_picture(path):
    image = cv2.imread(str(path))
    assert image.shape[0] > 300 and image.shape[1] > 600
    assert image.std() > 20


def test_the_papers_example_is_printed_and_drawn(tmp_path, capsys):
    out = tmp_path / 'paper.png'
    assert show_matching.main(['--text', '--out', str(out)]) == 0
    found = matrices(capsys.readouterr().out)
    assert_is_a_picture(out)
    assert found['cost'][3] == [0.4, 0.65, 0.8]
    assert found['Hungarian'] == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    printed = {
        'balanced': found['BalancedSinkhorn: reg=0.05'],
        'unbalanced to ground truths': found['UnbalancedSinkhorn: reg=0.05, reg_pred=100.0, reg_target=0.01'],
        'unbalanced to predictions': found['UnbalancedSinkhorn: reg=0.05, reg_pred=0.01, reg_target=100.0'],
    }
    for name, plan in printed.items():
        for row, expected in zip(plan, FIGURE_PLANS[name][2]):
            assert row == pytest.approx(expected, abs=2e-5)


def test_a_detector_on_an_image_is_drawn(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs/color_boxes/gfl_tiny_sinkhorn.py")!r}\n'
        f"train_dataloader = dict(dataset=dict(size='mini', data_root={str(tmp_path / 'data')!r}))\n"
    )
    out = tmp_path / 'image.png'
    show_matching.main([str(config), '--text', '--out', str(out), '--strategies', 'SoftMinAssigner', 'OTAAssigner'])
    found = matrices(capsys.readouterr().out)
    assert_is_a_picture(out)
    assert set(found) == {'cost', 'UnbalancedSinkhorn', 'SoftMin', 'OTA'}
    for row in found['UnbalancedSinkhorn']:
        assert sum(row) == pytest.approx(1, abs=0.06)  # reg_pred=None: every prediction gives all of itself
    assert len(found['cost']) == 16


def test_what_cannot_be_shown_is_named(tmp_path):
    stock = str(ROOT / 'configs/color_boxes/gfl_tiny_atss.py')
    with pytest.raises(KeyError, match="did you mean 'HungarianAssigner'"):
        show_matching.main(['--strategies', 'HungarianAsigner', '--out', str(tmp_path / 'no.png')])
    config = tmp_path / 'config.py'
    data = f"train_dataloader = dict(dataset=dict(size='mini', data_root={str(tmp_path / 'data')!r}))\n"
    config.write_text(f'_base_ = {stock!r}\n{data}')
    with pytest.raises(SystemExit, match='ATSSAssigner, which has no plan to show'):
        show_matching.main([str(config)])
    with pytest.raises(SystemExit, match='--index must be in'):
        show_matching.main([str(config), '--index', '999'])
