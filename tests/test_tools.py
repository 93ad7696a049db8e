"""tools/: real runs on tiny data of training, testing, resuming, several processes, and showing a run."""

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import Config
from mmengine.logging.history_buffer import HistoryBuffer
from packaging.version import Version

from uotod_mmdet.datasets.color_boxes import WIDTH, make_color_boxes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / 'tools'
BCCD_CONFIGS = [f'configs/bccd/gfl_tiny_{assigner}_20e.py' for assigner in ('atss', 'sinkhorn', 'soft')]
METRICS = [f'coco/bbox_mAP{suffix}' for suffix in ('', '_50', '_75', '_s', '_m', '_l')]
SECONDS = 300  # more than any run takes, on any machine
run_number = itertools.count()

# Without random flips, the order of the images is all that is random, and that follows from the seed and the epoch.
CONFIG = """
_base_ = '{root}/configs/color_boxes/gfl_tiny_soft.py'

load, annotations, pack = (dict(type=t) for t in ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs'))
annotations['with_bbox'] = True
resize = dict(type='Resize', scale=(200, 160), keep_ratio=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
few = dict(batch_size=4, num_workers=0, persistent_workers=False)
mini = dict(data_root='{data}', size='mini')
train_dataloader = dict(dataset=dict(pipeline=[load, annotations, resize, pack], **mini), **few)
val_dataloader = dict(
    dataset=dict(pipeline=[load, resize, annotations, dict(meta_keys=meta_keys, **pack)], **mini), **few
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/mini_v2_seed0/val.json')
test_evaluator = val_evaluator
model = dict(test_cfg=dict(score_thr=0.0))  # or the first epochs detect nothing, and CocoMetric reports no AP
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
schedule = dict(
    type='uotod_mmdet.AssignerScheduleHook', param='reg', start=0.2, stop=0.05, mode='exponential', by_epoch=False
)
custom_hooks = [schedule]
"""

STANDING_STILL = """
_base_ = './mini.py'
custom_imports = dict(imports=['probe_hooks'], allow_failed_imports=False)
custom_hooks = [{{_base_.schedule}}, dict(type='StandStill', priority='LOWEST')]
"""

PROBED = """
_base_ = './mini.py'
custom_imports = dict(imports=['probe_hooks'], allow_failed_imports=False)
custom_hooks = [dict(type='RankProbe', folder='{folder}')]
train_cfg = dict(max_epochs=1)
find_unused_parameters = True
"""

PROBE_HOOKS = """
import time

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StandStill(Hook):
    # Stops in the middle of epoch 2, so that a kill surely meets the run there.
    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.epoch == 1 and batch_idx == 1:
            time.sleep(600)


@HOOKS.register_module()
class RankProbe(Hook):
    # Writes what one process saw and learnt.
    def __init__(self, folder):
        self.folder, self.images = folder, []

    def before_train(self, runner):
        self.before = {name: value.clone() for name, value in runner.model.module.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.images += [sample.img_id for sample in data_batch['data_samples']]

    def after_train(self, runner):
        model = runner.model
        torch.save(
            dict(
                before=self.before,
                after=model.module.state_dict(),
                parameters=[name for name, _ in model.module.named_parameters()],
                images=self.images,
                processes=get_world_size(),
                find_unused_parameters=model.find_unused_parameters,
            ),
            f'{self.folder}/rank{get_rank()}.pth',
        )
"""


@pytest.fixture(scope='module')
def space(tmp_path_factory):
    """A folder with the data, the configs and the hooks of these tests."""
    folder = tmp_path_factory.mktemp('tools')
    make_color_boxes(folder / 'data', 'mini')
    (folder / 'mini.py').write_text(CONFIG.format(root=ROOT, data=folder / 'data'))
    (folder / 'standing_still.py').write_text(STANDING_STILL)
    (folder / 'probed.py').write_text(PROBED.format(folder=folder))
    (folder / 'probe_hooks.py').write_text(PROBE_HOOKS)
    return folder


def environment(space):
    # One thread a process: two cores share two processes, and sums come out the same in each run.
    path = os.pathsep.join(filter(None, [str(space), os.environ.get('PYTHONPATH')]))
    own = dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHON=sys.executable, PYTHONPATH=path)
    return {**os.environ, **own}


def run_tool(space, *command):
    """A tool in a process of its own; a script of Python or of bash."""
    start = [sys.executable] if command[0].endswith('.py') else []
    return subprocess.run(
        [*start, str(TOOLS / command[0]), *map(str, command[1:])],
        env=environment(space),
        cwd=space,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


def call_tool(tool, *arguments, options=()):
    """A tool in this process, which saves the imports; returns what it prints."""
    flags = [str(argument) for argument in arguments]
    if '--work-dir' in flags:  # a Runner: mmengine shares logger and visualizer of the same name
        name = f'call{next(run_number)}'
        flags += ['--cfg-options', f'experiment_name={name}', f'visualizer.name={name}', *options]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, 'argv', [tool, *flags])
        patch.setenv('LOCAL_RANK', '0')
        runpy.run_path(str(TOOLS / tool), run_name='__main__')
    return out.getvalue()


def scalars(work_dir, name):
    """What a run logged about ``name``: all lines, in the order of time."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if name in line]


def metrics_of(work_dir):
    """The metrics that tools/test.py wrote."""
    (file,) = work_dir.glob('*/*.json')
    return json.loads(file.read_text())


def logs(work_dir):
    return [file.read_text() for file in sorted(work_dir.glob('*/*.log'))]


def load(checkpoint):
    return torch.load(checkpoint, map_location='cpu')


def assert_same(ours, theirs, where='checkpoint'):
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f'{where}[{key!r}]')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs)):
            assert_same(*pair, f'{where}[{index}]')
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text: f'{where}: {text}')
    else:
        assert ours == theirs, where


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope='module')
def trained(space):
    """Work folder of a run of two epochs, and what it printed."""
    work_dir = space / 'trained'
    option = f'val_evaluator.outfile_prefix={work_dir}/last_val'
    done = run_tool(space, 'train.py', space / 'mini.py', '--work-dir', work_dir, '--cfg-options', option)
    assert done.returncode == 0, done.stdout
    return work_dir, done.stdout


@pytest.fixture(scope='module')
def killed(space):
    """Work folder of a run that was killed after the second of four iterations of its second epoch."""
    work_dir = space / 'killed'
    command = [sys.executable, TOOLS / 'train.py', space / 'standing_still.py', '--work-dir', work_dir]
    with open(space / 'killed.txt', 'w') as out:
        process = subprocess.Popen(command, env=environment(space), cwd=space, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + SECONDS
            while not any('Epoch(train) [2][2/4]' in log for log in logs(work_dir)):
                assert process.poll() is None and time.monotonic() < deadline, (space / 'killed.txt').read_text()
                time.sleep(0.1)
        finally:
            process.kill()
            code = process.wait()
    assert code == -signal.SIGKILL
    assert (work_dir / 'epoch_1.pth').exists() and not (work_dir / 'epoch_2.pth').exists()
    return work_dir


@pytest.fixture(scope='module')
def resumed(space, killed):
    """The same folder after a second run with --resume, and what that printed."""
    done = run_tool(space, 'train.py', space / 'mini.py', '--work-dir', killed, '--resume')
    assert done.returncode == 0, done.stdout
    return killed, done.stdout


def test_training_prints_coco_ap_after_each_epoch(trained):
    work_dir, printed = trained
    assert printed.count(' Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all |') == 2
    assert [line['step'] for line in scalars(work_dir, 'coco/bbox_mAP')] == [1, 2]
    for line in scalars(work_dir, 'coco/bbox_mAP'):
        assert f'coco/bbox_mAP: {line["coco/bbox_mAP"]:.4f}' in printed
    losses = [line['loss'] for line in scalars(work_dir, 'loss')]
    assert len(losses) == 8 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]


@pytest.mark.skipif(Version(torch.__version__) < Version('2.6'), reason='weights_only is not the default')
def test_checkpoint_loads_with_weights_only(trained):
    checkpoint = load(trained[0] / 'epoch_2.pth')
    assert (checkpoint['meta']['epoch'], checkpoint['meta']['iter']) == (2, 8)
    losses = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(losses, HistoryBuffer)
    logged = [line['loss'] for line in scalars(trained[0], 'loss')]
    np.testing.assert_allclose(losses.data[0][-8:], logged, rtol=1e-6)


def test_testing_finds_the_detections_and_the_ap_of_the_last_validation(space, trained):
    work_dir, out = trained[0], space / 'tested'
    options = [f'test_evaluator.outfile_prefix={out}/test']
    done = run_tool(
        space, 'test.py', work_dir / 'mini.py', work_dir / 'epoch_2.pth', '--work-dir', out, '--cfg-options', *options
    )
    assert done.returncode == 0, done.stdout
    detections = json.loads((out / 'test.bbox.json').read_text())
    assert len(detections) > 0
    assert detections == json.loads((work_dir / 'last_val.bbox.json').read_text())
    last = scalars(work_dir, 'coco/bbox_mAP')[-1]
    assert {name: metrics_of(out)[name] for name in METRICS} == {name: last[name] for name in METRICS}


def parser_of(path):
    """The flags of a tool: what tells how each is given and what it means when left out."""
    return {
        tuple(action.option_strings) or action.dest: (
            type(action).__name__,
            action.dest,
            action.nargs,
            action.const,
            action.default,
            action.choices,
            action.required,
        )
        for action in actions_of(path)
    }


def actions_of(path):
    """What a tool gives its parser of arguments, those of its commands included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            argparse.ArgumentParser, 'parse_args', lambda parser, *args: (_ for _ in ()).throw(Caught(parser))
        )
        patch.setattr(sys, 'argv', [str(path)])
        patch.setattr(signal, 'signal', lambda *args: None)  # or setup_env's handlers stay in this process
        patch.syspath_prepend(str(TOOLS))
        with pytest.raises(Caught) as caught:
            runpy.run_path(str(path), run_name='__main__')
    actions = []
    for action in caught.value.args[0]._actions:
        commands = isinstance(action, argparse._SubParsersAction)
        actions += [each for parser in action.choices.values() for each in parser._actions] if commands else [action]
    return actions


@pytest.mark.parametrize('path', sorted(TOOLS.glob('*.py')), ids=lambda path: path.name)
def test_each_tool_tells_its_arguments_and_their_defaults(path):
    if 'ArgumentParser(' not in path.read_text():
        pytest.skip('a part of a tool')
    for action in actions_of(path):
        assert action.help, action.dest
        with_value = action.nargs != 0 and action.option_strings and not isinstance(action, argparse._HelpAction)
        if with_value and action.default is not None and action.help != argparse.SUPPRESS:
            assert '%(default)s' in action.help or 'default:' in action.help, action.option_strings


class Caught(Exception):
    pass


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_each_flag_of_mmdets_tool_is_taken_in_its_form(tool):
    theirs = Path(mmdet.__file__).parent / '.mim' / 'tools' / tool
    if not theirs.is_file():
        pytest.skip('this mmdet was installed without its tools')
    found, expected = parser_of(TOOLS / tool), parser_of(theirs)
    assert {name: found.get(name) for name in expected} == expected
    more = {'train.py': {('--quiet',), ('--watch',), ('--tensorboard',)}, 'test.py': {('--quiet',)}}
    assert found.keys() - expected.keys() == more[tool]


def predictions(work_dir, space, *flags, options=()):
    """What tools/test.py writes about the validation images of the trained run, and the AP it reports."""
    out = space / f'out{next(run_number)}'
    checkpoint = work_dir / 'epoch_2.pth'
    flags = [work_dir / 'mini.py', checkpoint, '--work-dir', out, '--out', out / 'found.pkl', *flags]
    call_tool('test.py', *flags, options=options)
    return pickle.loads((out / 'found.pkl').read_bytes()), metrics_of(out)


def test_test_time_augmentation_merges_an_image_with_its_mirror_image(space, trained):
    alone, _ = predictions(trained[0], space)
    augmented, metrics = predictions(trained[0], space, '--tta')
    assert metrics['coco/bbox_mAP'] >= 0
    cfg = Config.fromfile(trained[0] / 'mini.py')
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline.insert(len(pipeline) - 1, dict(type='RandomFlip', prob=1.0))
    cfg.dump(space / 'mirrored.py')
    checkpoint = trained[0] / 'epoch_2.pth'
    out = space / 'mirrored'
    call_tool('test.py', space / 'mirrored.py', checkpoint, '--work-dir', out, '--out', out / 'found.pkl')
    mirrored = pickle.loads((out / 'found.pkl').read_bytes())
    assert len(augmented) == len(alone) == len(mirrored) == 8
    for one, other, merged in zip(alone, mirrored, augmented):
        one, other, merged = one['pred_instances'], other['pred_instances'], merged['pred_instances']
        back = other['bboxes'].clone()
        back[:, [0, 2]] = WIDTH - back[:, [2, 0]]
        boxes = torch.cat([back, one['bboxes']])
        scores = torch.cat([other['scores'], one['scores']])
        labels = torch.cat([other['labels'], one['labels']])
        found, kept = batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))
        torch.testing.assert_close(merged['bboxes'], found[:100, :4], rtol=0, atol=1e-3)
        torch.testing.assert_close(merged['scores'], found[:100, 4])
        assert torch.equal(merged['labels'], labels[kept][:100])


def test_test_time_augmentation_of_the_config_is_taken(space, trained):
    options = [
        'tta_model.type=DetTTAModel',
        'tta_model.tta_cfg.nms.type=nms',
        'tta_model.tta_cfg.nms.iou_threshold=0.5',
    ]
    found, _ = predictions(trained[0], space, '--tta', options=[*options, 'tta_model.tta_cfg.max_per_img=3'])
    assert [len(image['pred_instances']['bboxes']) for image in found] == [3] * 8


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_missing_file_is_named_before_anything_is_built(space, tmp_path, tool):
    rest = ['nowhere.pth'] if tool == 'test.py' else ['--resume', 'nowhere.pth']
    name = 'checkpoint' if tool == 'test.py' else '--resume'
    with pytest.raises(SystemExit, match='^config: nowhere.py is not there; give a file.$'):
        call_tool(tool, 'nowhere.py', *rest)
    with pytest.raises(SystemExit, match='^config: .* is a folder; give a file.$'):
        call_tool(tool, tmp_path, *rest)
    with pytest.raises(SystemExit, match=f'^{name}: nowhere.pth is not there; give a file.$'):
        call_tool(tool, space / 'mini.py', *rest, '--work-dir', tmp_path)


def test_killed_run_resumes_at_the_last_whole_epoch(resumed):
    work_dir, printed = resumed
    assert f'Auto resumed from the latest checkpoint {work_dir}/epoch_1.pth' in printed
    assert 'resumed epoch: 1, iter: 4' in printed
    epochs = [line['epoch'] for line in scalars(work_dir, 'loss')]
    assert epochs == [1] * 4 + [2] * 2 + [2] * 4  # before the kill, and after it
    assert [line['step'] for line in scalars(work_dir, 'coco/bbox_mAP')] == [1, 2]


def test_resumed_run_ends_with_the_state_of_one_that_was_not_killed(trained, resumed):
    whole, joined = load(trained[0] / 'epoch_2.pth'), load(resumed[0] / 'epoch_2.pth')
    for name in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(joined[name], whole[name], name)
    assert (joined['meta']['epoch'], joined['meta']['iter']) == (2, 8)
    steps = {int(state['step']) for state in joined['optimizer']['state'].values()}
    assert steps == {8}
    start = load(resumed[0] / 'epoch_1.pth')['state_dict']
    assert any(not torch.equal(start[name], value) for name, value in joined['state_dict'].items())


def test_resumed_run_has_the_schedule_of_one_that_was_not_killed(trained, resumed):
    whole = [line['reg'] for line in scalars(trained[0], 'reg')]
    np.testing.assert_allclose(whole, 0.2 * (0.05 / 0.2) ** (np.arange(8) / 7))
    joined = scalars(resumed[0], 'reg')
    assert [line['step'] for line in joined] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]  # before the kill, and after it
    np.testing.assert_array_equal([line['reg'] for line in joined], [whole[line['step'] - 1] for line in joined])


def test_statistics_of_the_plan_are_logged_and_not_summed(trained):
    lines = scalars(trained[0], 'matched_mass')
    assert len(lines) == 8
    for line in lines:
        assert line['matched_mass'] > 0 and 0 <= line['unmatched_gts'] <= 1 <= line['sinkhorn_iters']
        np.testing.assert_allclose(line['loss'], line['loss_cls'] + line['loss_bbox'] + line['loss_dfl'], rtol=1e-5)


def test_config_that_a_resumed_run_leaves_does_not_make_testing_resume(space, resumed):
    work_dir, out = resumed[0], space / 'tested_resumed'
    assert 'resume = True' in (work_dir / 'mini.py').read_text()
    call_tool('test.py', work_dir / 'mini.py', work_dir / 'epoch_2.pth', '--work-dir', out)
    (log,) = logs(out)
    assert 'Load checkpoint from' in log and 'resumed epoch' not in log


@pytest.fixture(scope='module')
def two_processes(space):
    """What each of two processes wrote that trained together."""
    command = ['dist_train.sh', space / 'probed.py', 2, '--work-dir', space / 'dist']
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PORT', free_port())
        done = run_tool(space, *command)
    assert done.returncode == 0, done.stdout
    return [load(space / f'rank{rank}.pth') for rank in range(2)]


def test_two_processes_share_the_images(two_processes):
    first, second = (set(probe['images']) for probe in two_processes)
    assert [probe['processes'] for probe in two_processes] == [2, 2]
    assert len(first) == len(second) == 8
    assert first | second == set(range(16))


def test_two_processes_agree_on_the_weights_they_learn(two_processes):
    first, second = two_processes
    names = first['parameters']
    assert all(torch.equal(first['after'][name], second['after'][name]) for name in names)
    learnt = [name for name in names if not torch.equal(first['before'][name], first['after'][name])]
    assert len(learnt) > 0.9 * len(names)
    # They saw other images, so without an exchange of gradients they would have learnt other weights.
    assert any(not torch.equal(first['after'][name], second['after'][name]) for name in first['after'])


def test_find_unused_parameters_reaches_the_wrapper_on_the_cpu(two_processes):
    assert [probe['find_unused_parameters'] for probe in two_processes] == [True, True]


def test_two_processes_report_the_ap_of_one(space, trained, monkeypatch):
    work_dir, out = trained[0], space / 'dist_tested'
    monkeypatch.setenv('PORT', free_port())
    done = run_tool(space, 'dist_test.sh', space / 'mini.py', work_dir / 'epoch_2.pth', 2, '--work-dir', out)
    assert done.returncode == 0, done.stdout
    last = scalars(work_dir, 'coco/bbox_mAP')[-1]
    assert {name: metrics_of(out)[name] for name in METRICS} == {name: last[name] for name in METRICS}


@pytest.mark.parametrize(
    ('script', 'given', 'handed_on'),
    [
        ('dist_train.sh', ['my config.py', '4'], ['train.py', 'my config.py']),
        ('dist_test.sh', ['my config.py', 'last.pth', '4'], ['test.py', 'my config.py', 'last.pth']),
    ],
)
def test_launcher_hands_nodes_port_and_flags_to_torchrun(tmp_path, script, given, handed_on):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    nodes = dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='10.0.0.7', PORT='2950')
    done = subprocess.run(
        [TOOLS / script, *given, '--cfg-options', 'work_dir=with space'],
        env={**os.environ, **nodes, 'PYTHON': str(python)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[:2] == ['-m', 'torch.distributed.run']
    script_at = words.index(str(TOOLS / handed_on[0]))
    options = dict(zip(words[2:script_at:2], words[3:script_at:2]))
    assert options == {
        '--nnodes': '3',
        '--node_rank': '2',
        '--master_addr': '10.0.0.7',
        '--master_port': '2950',
        '--nproc_per_node': '4',
    }
    assert words[script_at + 1 :] == [*handed_on[1:], '--launcher', 'pytorch', '--cfg-options', 'work_dir=with space']


@pytest.mark.parametrize(
    ('script', 'given'),
    [
        ('dist_train.sh', []),
        ('dist_train.sh', ['c.py']),
        ('dist_train.sh', ['c.py', '--amp']),
        ('dist_test.sh', ['c.py', 'c.pth']),
        ('dist_test.sh', ['c.py', 'c.pth', '--out']),
    ],
)
def test_launcher_without_its_arguments_says_how_it_is_used(script, given):
    done = subprocess.run([TOOLS / script, *given], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ') and 'PROCESSES_PER_NODE' in done.stderr
    assert done.stdout == ''


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize(
    ('option', 'found'),
    [
        ('model.bbox_head.feat_channels=64', r'have another shape \(first: bbox_head\.cls_convs\.0\.conv\.weight, '),
        ('model.backbone.depth=34', r'are missing in it \(first: backbone\.layer1\.2\.conv1\.weight\)'),
    ],
)
def test_checkpoint_of_another_model_is_refused_by_a_parameter(space, trained, tmp_path, tool, option, found):
    checkpoint = trained[0] / 'epoch_2.pth'
    flags = ['--resume', checkpoint] if tool == 'train.py' else [checkpoint]
    with pytest.raises(ValueError, match=f'of another model than the config.*{found}.*Give the config that'):
        call_tool(tool, space / 'mini.py', *flags, '--work-dir', tmp_path, options=[option])


@pytest.mark.parametrize(
    ('option', 'error', 'message'),
    [
        ('model.train_cfg.assigner.regg=1', TypeError, "has no argument 'regg'; did you mean 'reg'"),
        (
            'model.train_cfg.assigner.type=uotod_mmdet.UnbalancedSinkhornAsigner',
            KeyError,
            "did you mean 'UnbalancedSinkhornAssigner'.* Registered there: .*HungarianAssigner",
        ),
    ],
)
def test_mistake_in_the_assigner_is_answered_with_what_exists(space, tmp_path, option, error, message):
    with pytest.raises(error, match=message):
        call_tool('train.py', space / 'mini.py', '--work-dir', tmp_path, options=[option])


def test_mixed_precision_without_a_gpu_is_refused_in_a_sentence(space, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='^--amp needs a GPU: .* Leave the flag out.$'):
        call_tool('train.py', space / 'mini.py', '--amp', '--work-dir', tmp_path)


def draw_cells(root):
    """A data set like BCCD, and the images of trainval that have an object with area."""
    rng = np.random.default_rng(0)
    normal, degenerate = (20, 30, 120, 110), (90, 40, 90, 80)
    splits = {
        'trainval': {'a': [normal], 'b': [normal, (150, 60, 230, 150)], 'c': [degenerate, normal], 'd': []},
        'test': {'e': [normal], 'f': [], 'g': [normal, degenerate]},
    }
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for split, images in splits.items():
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(images) + '\n')
        for name, boxes in images.items():
            image = rng.integers(190, 230, (240, 320, 3), dtype=np.uint8)
            objects = ''
            for number, (left, top, right, bottom) in enumerate(boxes):
                center = ((left + right) // 2, (top + bottom) // 2)
                axes = (max(1, (right - left) // 2), (bottom - top) // 2)
                cv2.ellipse(image, center, axes, 0, 0, 360, (60, 60, 200), -1)
                corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), (left, top, right, bottom))
                box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
                cell = ('RBC', 'WBC', 'Platelets')[number]
                objects += f'<object><name>{cell}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>'
            cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), image)
            size = '<size><width>320</width><height>240</height><depth>3</depth></size>'
            xml = f'<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>'
            (root / 'Annotations' / f'{name}.xml').write_text(xml)
    return ['a', 'b', 'c']


@pytest.mark.parametrize('config', BCCD_CONFIGS)
def test_bccd_config_trains_where_boxes_lack_area_and_images_lack_boxes(tmp_path, monkeypatch, config):
    usable = draw_cells(tmp_path / 'cells')
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'cells'))
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=1']
    options += ['default_hooks.logger.interval=1']
    options += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val')]
    options += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val')]
    work_dir = tmp_path / 'work'
    call_tool('train.py', ROOT / config, '--work-dir', work_dir, options=options)
    losses = [line['loss'] for line in scalars(work_dir, 'loss')]
    assert len(losses) == len(usable) and all(map(math.isfinite, losses))
    (result,) = scalars(work_dir, 'pascal_voc/mAP')
    assert 0 <= result['pascal_voc/mAP'] <= 1
    (log,) = logs(work_dir)
    assert 'without area' not in log  # the pipeline dropped the box before the assigner could complain of it


@pytest.mark.parametrize('root', [None, 'nowhere'])
def test_missing_bccd_folder_ends_training_with_what_to_set(space, tmp_path, monkeypatch, root):
    if root is None:
        monkeypatch.delenv('BCCD_ROOT', raising=False)
    else:
        monkeypatch.setenv('BCCD_ROOT', str(tmp_path / root))
    done = run_tool(space, 'train.py', ROOT / BCCD_CONFIGS[1], '--work-dir', tmp_path / 'work')
    assert done.returncode == 1
    place = 'data/BCCD' if root is None else str(tmp_path / root)
    assert done.stdout.splitlines()[-1].endswith(
        f"The XMLDataset of train_dataloader is not at data_root='{place}': there is no "
        f'{place}/ImageSets/Main/trainval.txt. Set the environment variable BCCD_ROOT to the folder of the data set, '
        'or data_root and ann_file of train_dataloader.dataset.'
    )


@pytest.fixture(scope='module')
def shown(trained):
    """What tools/show_run.py prints, and its two pictures."""
    work_dir = trained[0]
    printed = call_tool('show_run.py', work_dir, '--images', 3, '--score-thr', 0.01)
    return printed, cv2.imread(str(work_dir / 'curves.png')), cv2.imread(str(work_dir / 'detections.png'))


def test_show_run_prints_the_ap_that_was_logged(trained, shown):
    lines = scalars(trained[0], 'coco/bbox_mAP')
    rows = [line.split() for line in shown[0].splitlines()]
    at = rows.index(['epoch', 'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75'])
    wanted = [[str(line['step']), *(f'{line[name]:.3f}' for name in METRICS[:3])] for line in lines]
    assert rows[at + 1 : at + 3] == wanted


def colored(image):
    """Which pixels are not grey."""
    return image.max(2).astype(int) - image.min(2) > 60


def test_show_run_draws_all_curves(shown):
    curves = shown[1]
    height, width = curves.shape[:2]
    assert 300 < height < 1000 and 800 < width < 2000
    assert (curves == 255).all(2).mean() > 0.5  # paper
    for third in np.array_split(curves, 3, axis=1):  # losses, AP, statistics of the plan
        assert colored(third).sum() > 200


def test_show_run_draws_ground_truth_beside_detections(shown):
    pictures = shown[2]
    height, width = pictures.shape[:2]
    assert (height, width) == (3 * 360 + 36, 900)
    half = width // 2  # the images are the same in both halves, so what one has more of is drawn
    for color, kind, drawn_left in (('#ffffff', 'truth', True), ('#ff2020', 'false', False)):
        wanted = [int(color[place : place + 2], 16) for place in (5, 3, 1)]
        there = (np.abs(pictures[60:].astype(int) - wanted) < 40).all(2)  # below the legend
        left, right = there[:, :half].sum(), there[:, half:].sum()
        assert left > right + 200 if drawn_left else right > left + 200, kind


def test_show_run_shows_a_validation_that_detected_nothing_as_a_dash(tmp_path, trained):
    work_dir = tmp_path / 'run'
    shutil.copytree(trained[0], work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first = next(line for line in lines if 'coco/bbox_mAP' in line)
    for name in METRICS:
        first.pop(name)  # as CocoMetric does
    log.write_text('\n'.join(map(json.dumps, lines)) + '\n')
    rows = [line.split() for line in call_tool('show_run.py', work_dir, '--images', 1).splitlines()]
    at = rows.index(['epoch', 'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75'])
    last = scalars(work_dir, 'coco/bbox_mAP')[-1]
    assert rows[at + 1 : at + 3] == [['1', '-', '-', '-'], ['2', *(f'{last[name]:.3f}' for name in METRICS[:3])]]


@pytest.mark.parametrize('left_out', ['all', 'checkpoint'])
def test_show_run_of_an_unfinished_folder_says_what_is_missing(tmp_path, trained, left_out):
    folder = tmp_path / 'run'
    folder.mkdir()
    if left_out == 'checkpoint':
        for log in trained[0].glob('*/vis_data'):
            shutil.copytree(log, folder / log.parent.name / 'vis_data')
        shutil.copy(trained[0] / 'mini.py', folder)
        (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    wanted = 'holds no validated run' if left_out == 'all' else 'checkpoint .*epoch_2.pth is gone: give another'
    with pytest.raises(SystemExit, match=wanted):
        call_tool('show_run.py', folder)
