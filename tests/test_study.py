"""tools/study.py: study files, real runs on tiny data, and results that survive whatever ends a run."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from test_tools import ROOT, TOOLS
from tiny_models import build, images_and_samples, tiny_config

from uotod_mmdet.datasets.color_boxes import make_color_boxes

sys.path.insert(0, str(TOOLS))
import study  # noqa: E402
import study_pool  # noqa: E402
import study_results  # noqa: E402
import study_run  # noqa: E402
from study_file import StudyError, load_study  # noqa: E402

pytestmark = pytest.mark.slow  # every study is read with all its configs

SETTINGS = """
title = 'Tiny'
question = 'Is all kept?'
_mini = dict(data_root={data!r}, size='mini')
_few = dict(batch_size=4, num_workers=0, persistent_workers=False)
options = dict(
    train_dataloader=dict(dataset=_mini, **_few),
    val_dataloader=dict(dataset=_mini, **_few),
    val_evaluator=dict(ann_file={data!r} + '/mini_v2_seed0/val.json'),
    model=dict(test_cfg=dict(score_thr=0.0)),
)
_config = 'configs/color_boxes/gfl_tiny_atss.py'
arms = dict(
    stock=dict(config=_config),
    crashes=dict(config=_config, options={{'model.bbox_head.nonsense': 1}}),
    diverges=dict(config=_config, options=dict(optim_wrapper=dict(optimizer=dict(lr=1e30), clip_grad=None))),
)
baseline = 'stock'
data = dict(boxes=dict())
epochs = 1
seeds = [0]
metrics = ['AP', 'AR', 'AP_without_nms', 'AR_without_nms']
"""


def call(monkeypatch, *arguments):
    """tools/study.py in this process."""
    monkeypatch.setattr(sys, 'argv', ['study.py', *map(str, arguments)])
    monkeypatch.setattr(signal, 'signal', lambda *_: None)  # pytest keeps its own
    study.main()


def write_study(folder, name='tiny', **changes):
    """A study file with some keys set anew; its path."""
    path = folder / f'{name}.py'
    path.write_text(
        SETTINGS.format(data=str(folder / 'boxes')) + '\n'.join(f'{key} = {value!r}' for key, value in changes.items())
    )
    return path


def results_of(path):
    return [json.loads(line) for line in load_study(path).results.read_text().splitlines()]


def a_line(study, arm, seed=0, ap=0.5, **changes):
    """A line of results as a run of the study's present config gives it."""
    return dict(
        study=study.name,
        arm=arm,
        data='boxes',
        seed=seed,
        fold=None,
        config_hash=study.hashes[arm, 'boxes'],
        data_hash=None,
        code='0123456789ab',
        version='9.9',
        status='done',
        epochs=2,
        curve=[[1, ap / 2], [2, ap]],
        final=dict(AP=ap, AR=ap, AP_without_nms=ap / 2, AR_without_nms=ap),
        by_class={},
        seconds_an_iteration=0.25,
        peak_mb=500,
        **changes,
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(baseline='stok'), r"baseline: 'stok' is not an arm \(there are: stock, .*did you mean 'stock'"),
        (dict(metrics=['AP', 'AP60']), r"metrics: 'AP60' is not a metric .*AP_without_nms.*did you mean"),
        (dict(claims=[dict(text='', kind='ratio', arm='soft', at_least=1)]), r"claims\[0\]: 'soft' is not an arm"),
        (
            dict(claims=[dict(text='', kind='ratio', arm='stock', data=['cells'], at_least=1)]),
            r"claims\[0\]: 'cells' is not a data set \(there are: boxes\)",
        ),
        (dict(claims=[dict(text='', kind='ratio', arm='stock')]), 'give one of at_least and at_most'),
        (dict(claim=[]), r"'claim' is not a key of a study .*did you mean 'claims'"),
        (dict(arms=dict(stock=dict(config='x.py', option=1))), r"arm 'stock': 'option' is not a key of an arm"),
        (dict(question=''), "'question' is missing"),
    ],
)
def test_mistake_in_a_study_file_is_named_with_what_exists(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path, **changes))


def test_unknown_arm_on_the_command_line_is_named(tmp_path, monkeypatch):
    path = write_study(tmp_path)
    with pytest.raises(SystemExit, match="--only: 'stokc' is not an arm"):
        call(monkeypatch, 'run', path, '--only', 'stokc', '--work-dir', tmp_path)


def test_options_apply_in_order_and_epochs_stretch_the_schedule(tmp_path):
    arms = dict(
        stock=dict(config='configs/color_boxes/gfl_tiny_atss.py'),
        own=dict(
            config='configs/color_boxes/gfl_tiny_atss.py',
            epochs=7,
            options={'train_dataloader.batch_size': 2, 'model.train_cfg.assigner': dict(_delete_=True, type='X', a=1)},
        ),
    )
    study = load_study(write_study(tmp_path, arms=arms, data=dict(boxes=dict(options=dict(train_cfg=dict(x=3))))))
    cfg = study.config('own', 'boxes')
    assert (cfg.train_dataloader.batch_size, cfg.val_dataloader.batch_size, cfg.train_cfg.x) == (2, 4, 3)
    assert cfg.model.train_cfg.assigner == dict(type='X', a=1)
    assert cfg.train_cfg.max_epochs == 7
    warm, cosine = cfg.param_scheduler
    assert (warm.end, cosine.begin, cosine.end, cosine.T_max) == (1, 1, 7, 6)
    stock = study.config('stock', 'boxes')
    assert stock.train_cfg.max_epochs == 1 and [step.type for step in stock.param_scheduler] == ['LinearLR']


def test_hash_is_of_what_decides_the_result_and_not_of_places(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    here, there = load_study(write_study(tmp_path)), load_study(write_study(tmp_path / 'elsewhere'))
    changed = load_study(write_study(tmp_path, 'changed', epochs=2))
    assert here.hashes == there.hashes
    assert len({*here.hashes.values(), *changed.hashes.values()}) == 6


def test_shipped_studies_name_what_exists():
    for path in sorted((ROOT / 'studies').glob('*.py')):
        study = load_study(path)
        for arm in study.arms:
            assert (ROOT / study.arms[arm]['config']).is_file()


def test_runs_go_replicate_by_replicate_so_that_a_stopped_study_can_be_compared(tmp_path):
    data = dict(boxes=dict(), cells=dict(folder='x', folds=2, seeds=[5]))
    study = load_study(write_study(tmp_path, data=data, seeds=[0, 1]))
    got = [(run.data, run.arm, run.seed, run.fold) for run in study.runs()]
    arms = list(study.arms)
    wanted = []
    for index in range(2):
        wanted += [('boxes', arm, index, None) for arm in arms] + [('cells', arm, 5, index) for arm in arms]
    assert got == wanted


def test_code_checksum_sees_code_and_not_comments():
    strip = study_results._without_python_comments
    plain = "def f(a):\n    return a + 1  # why\n\n\nclass A:\n    b = 'x # y'\n"
    wordy = '"""What."""\n# Note.\ndef f(a):\n    """Adds."""\n    return a + 1\n'
    wordy += 'class A:\n    b = \'x # y\'\n    """Doc."""\n'
    assert strip(plain) == strip(wordy) == "def f(a):\n    return a + 1\nclass A:\n    b = 'x # y'"
    assert strip(plain) != strip(plain.replace('+ 1', '+ 2'))
    assert study_results._without_cpp_comments('int a; // b\n/* c\nd */\nint e;') == 'int a;\nint e;'


def test_half_written_last_line_is_reported_and_rewritten(tmp_path, monkeypatch, capsys):
    study = load_study(write_study(tmp_path))
    for arm in study.arms:
        study_results.append_result(study.results, a_line(study, arm))
    whole = study.results.read_bytes()
    cut = whole[:-20]
    study.results.write_bytes(cut)
    lines, notice = study_results.read_results(study.results)
    assert [line['arm'] for line in lines] == ['stock', 'crashes'] and 'half a line' in notice
    assert study.results.read_bytes() == cut  # reading changes nothing

    study_results.append_result(study.results, a_line(study, 'diverges'))
    assert study.results.read_bytes() == whole
    study.results.write_bytes(cut)
    call(monkeypatch, 'run', study.path, '--only', 'stock', '--work-dir', tmp_path / 'work')
    printed = capsys.readouterr().out
    assert 'ended in half a line, which is dropped' in printed and 'nothing left to do' in printed
    assert study.results.read_bytes() == whole[: whole.rfind(b'\n', 0, -1) + 1]


def test_line_that_is_no_json_is_named(tmp_path):
    study = load_study(write_study(tmp_path))
    study_results.append_result(study.results, a_line(study, 'stock'))
    with open(study.results, 'a') as file:
        file.write('<<<<<<< HEAD\n')
    with pytest.raises(StudyError, match=r'tiny\.jsonl, line 2 is no JSON .*: correct or remove it'):
        study_results.read_results(study.results)


def test_results_of_another_code_count_and_are_said(tmp_path, monkeypatch, capsys):
    study = load_study(write_study(tmp_path))
    for arm in study.arms:
        study_results.append_result(study.results, a_line(study, arm))
    call(monkeypatch, 'run', study.path, '--work-dir', tmp_path / 'work')
    printed = capsys.readouterr().out
    assert '3 results are of other versions of the code; --fresh does these runs again.' in printed
    assert 'tiny: nothing left to do.' in printed


def test_run_that_another_study_has_done_is_taken_over(tmp_path, monkeypatch, capsys):
    first, second = (load_study(write_study(tmp_path, name)) for name in ('first', 'second'))
    arms = {'plain': first.arms['stock'], 'slow': dict(first.arms['stock'], epochs=2)}
    path = write_study(tmp_path, 'second', arms=arms, baseline='plain', seeds=[0, 1])
    first.results.parent.mkdir()
    lines = [a_line(first, 'stock', ap=0.25), a_line(first, 'stock', seed=2), a_line(first, 'crashes')]
    lines[0].pop('data_hash')  # as in results of before data folders
    first.results.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    monkeypatch.setattr(study_pool, '_run_all', lambda study, runs, *_: left.extend(map(str, runs)))
    left = []
    call(monkeypatch, 'run', path, '--work-dir', tmp_path / 'work')
    assert left == ['slow, boxes, seed 0', 'plain, boxes, seed 1', 'slow, boxes, seed 1']
    (line,) = results_of(path)
    assert (line['study'], line['arm'], line['taken_from'], line['final']['AP']) == ('second', 'plain', 'first', 0.25)
    assert 'plain, boxes, seed 0: AP 0.250, done by the study first' in capsys.readouterr().out
    study_results.append_result(second.results, a_line(load_study(path), 'slow', ap=0.5))
    call(monkeypatch, 'run', path, '--work-dir', tmp_path / 'work')
    assert [line['arm'] for line in results_of(path)] == ['plain', 'slow']


def test_second_process_is_refused(tmp_path, monkeypatch):
    path = write_study(tmp_path)
    from study_pool import only_one

    with (
        only_one(load_study(path), tmp_path / 'work' / 'tiny'),
        pytest.raises(SystemExit, match='tiny is being run by another process'),
    ):
        call(monkeypatch, 'run', path, '--work-dir', tmp_path / 'work')


@pytest.mark.parametrize('head', ['GFLHead', 'RetinaHead', 'YOLOXHead', 'DETRHead'])
def test_without_nms_every_box_above_the_threshold_is_left(head):
    assigner = dict(type='uotod_mmdet.HungarianAssigner', match_costs=dict(type='FocalLossCost'))
    model = tiny_config(head, assigner)
    if head != 'DETRHead':
        model.test_cfg.update(score_thr=0.0, nms_pre=30, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.05))
    detector = build(model).eval()
    data = detector.data_preprocessor(images_and_samples((3,), size=256), False)

    def found():
        with torch.no_grad():
            (sample,) = detector.predict(data['inputs'], copy.deepcopy(data['data_samples']), rescale=False)
        return sample.pred_instances.bboxes

    before = found()
    study_run.turn_off_nms(detector)
    after = found()
    if head == 'DETRHead':  # has no NMS
        assert torch.equal(before, after)
        return
    assert len(after) > len(before) > 0


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A study of three arms, two of which fail, done."""
    folder = tmp_path_factory.mktemp('study')
    make_color_boxes(folder / 'boxes', 'mini')
    path = write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        call(patch, 'run', path, '--jobs', 2, '--work-dir', folder / 'work')
    return path


def test_run_keeps_what_the_report_needs(finished):
    (line,) = (line for line in results_of(finished) if line['arm'] == 'stock')
    cfg = Config.fromfile(next((finished.parent / 'work').rglob('vis_data/config.py')))
    assert cfg.randomness.seed == 0
    assert line['status'] == 'done' and line['epochs'] == 1 and len(line['curve']) == 1
    logged = (finished.parent / 'work/tiny/boxes-stock-seed0/log.txt').read_text()
    assert f'coco/bbox_mAP: {line["final"]["AP"]:.4f}' in logged and line['curve'][0] == [1, line['final']['AP']]
    assert 'AP_without_nms' in line['final'] and set(line['by_class']) >= {'hue000', 'hue342'}
    assert 0 < line['seconds_an_iteration'] < 60 and 100 < line['peak_mb'] < 10_000
    assert len(line['code']) == 12 and line['version'] and str(finished.parent) not in json.dumps(line)


def test_arm_that_crashes_or_diverges_is_kept_as_failed_and_the_others_go_on(finished, monkeypatch, capsys):
    failed = {line['arm']: line['reason'] for line in results_of(finished) if line['status'] == 'failed'}
    assert set(failed) == {'crashes', 'diverges'}
    assert "unexpected keyword argument 'nonsense'" in failed['crashes']
    assert 'diverged' in failed['diverges'] and 'not finite at iteration' in failed['diverges']
    call(monkeypatch, 'report', finished, '--out', finished.parent / 'docs')
    page = (finished.parent / 'docs/evidence.md').read_text()
    assert '- 1 of 3 runs are done, 2 failed.' in page
    for arm, reason in failed.items():
        assert f'- {arm}, boxes, seed 0: {reason}' in page
    call(monkeypatch, 'run', finished, '--work-dir', finished.parent / 'work')
    printed = capsys.readouterr().out
    assert '2 runs failed; --retry-failed does these again.' in printed and 'nothing left to do' in printed


def test_killed_study_leaves_no_run_behind_and_no_half_result(tmp_path, finished):
    path = write_study(tmp_path, 'killed', epochs=200, options=load_study(finished).options)
    command = [
        sys.executable,
        str(TOOLS / 'study.py'),
        'run',
        str(path),
        '--only',
        'stock',
        '--work-dir',
        str(tmp_path),
    ]
    going = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    wait_until(lambda: list(tmp_path.rglob('progress')))
    going.send_signal(signal.SIGKILL)
    going.wait()
    wait_until(lambda: str(path) not in subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout)
    assert not load_study(path).results.exists()


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)
