"""What ``tools/train.py`` and ``tools/test.py`` do to a config before mmengine's Runner sees it."""

import argparse
import atexit
import copy
import importlib.util
import os
import re
import sys
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed
from mmengine.runner import Runner

from uotod_mmdet.hooks.dataset_fit_hook import NoObjectsError, check_dataset


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that mmdet's train and test tools share."""
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and results; default: work_dirs/<name of the config>'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config: key=value pairs such as train_cfg.max_epochs=2, which '
        'shortens the schedules alike; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--quiet',
        action='store_true',
        help='show losses and metrics alone, and of an error of uotod_mmdet its sentence; the log in the work folder '
        'has all',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started; tools/dist_train.sh uses pytorch (%(default)s)',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher (%(default)s)')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config named on the command line and apply the common flags.

    Raises:
        SystemExit: If there is no such file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(existing_file(args.config, 'config'))
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        planned = copy.deepcopy(cfg.get('train_cfg') or {})
        cfg.merge_from_dict(args.cfg_options)
        if not any(key.startswith('param_scheduler') for key in args.cfg_options):
            follow_length(cfg, planned)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default_work_dir(args)
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _use_cpu_processes(cfg)
    return cfg


def default_work_dir(args: argparse.Namespace) -> str:
    return str(Path('work_dirs') / Path(args.config).stem)


def follow_length(cfg: Config, planned: dict) -> None:
    """Stretch or shorten the schedules of a config whose training is not as long as planned, and say so.

    Moved are begin, end, T_max and milestones of ``param_scheduler``, and begin and end of AssignerScheduleHook, where
    they count what the length counts, epochs or iterations. A warm-up keeps its length. What mmdet's own hooks count
    (the epoch in which a pipeline changes, say) stays.

    Args:
        cfg: The config with its new ``train_cfg``; changed in place.
        planned: ``train_cfg`` of before.
    """
    unit = 'max_epochs' if 'max_epochs' in planned else 'max_iters'
    old, new = planned.get(unit), (cfg.get('train_cfg') or {}).get(unit)
    if not old or not new or old == new:
        return
    by_epoch = unit == 'max_epochs'
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    counted = [each for each in schedulers if each.get('by_epoch', True) == by_epoch]
    hooks = [each for each in cfg.get('custom_hooks') or [] if _class_name(each) == 'AssignerScheduleHook']
    hooks = [each for each in hooks if each.get('by_epoch') in (None, by_epoch)]
    warm_ups = [each['end'] for each in counted if each.get('begin', 0) == 0 and each.get('end', old) < old]
    warm = min(max(warm_ups, default=0), new)

    def moved(step: int) -> int:
        return min(step, new) if step <= warm else max(round(warm + (step - warm) * (new - warm) / (old - warm)), 1)

    changed = False
    for schedule in counted + hooks:
        begin, before = schedule.get('begin', 0), dict(schedule)
        if 'T_max' in schedule:
            schedule['T_max'] = max(moved(begin + schedule['T_max']) - moved(begin), 1)
        if 'milestones' in schedule:
            schedule['milestones'] = sorted({moved(step) for step in schedule['milestones']})
        for name in ('begin', 'end'):
            if schedule.get(name) is not None:
                schedule[name] = moved(schedule[name])
        changed |= dict(schedule) != before
    if isinstance(cfg.get('param_scheduler'), (list, tuple)):  # none that would begin after the end
        cfg.param_scheduler = [each for each in schedulers if each not in counted or each.get('begin', 0) < new]
    if changed and os.environ.get('RANK', '0') == '0':  # there is no logger yet
        print(f'{unit} is {new}, the config was made for {old}: its schedules are scaled alike.')


def existing_file(path: str, argument: str) -> str:
    """``path``, if it is a local file or an address such as ``https://...``.

    Raises:
        SystemExit: If there is no such file, naming the argument.
    """
    if '://' not in path and not Path(path).is_file():
        raise SystemExit(f'{argument}: {path} is {"a folder" if Path(path).is_dir() else "not there"}; give a file.')
    return path


def add_custom_hook(cfg: Config, **hook: object) -> None:
    """Append a hook to ``custom_hooks`` of a config, unless one of this type is there.

    Give its type as the path of the class, which is found in every default scope, None included.
    """
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(_class_name(present) == _class_name(hook) for present in hooks if isinstance(present, dict)):
        cfg.custom_hooks = [*hooks, hook]


def add_tensorboard(cfg: Config) -> None:
    """Let the visualizer of a config write for TensorBoard, too.

    Raises:
        SystemExit: If the package is not installed, or the config has no visualizer.
    """
    if importlib.util.find_spec('tensorboard') is None:
        raise SystemExit('--tensorboard needs a package that is not installed: pip install tensorboard')
    if 'visualizer' not in cfg:
        raise SystemExit(
            "--tensorboard needs a visualizer in the config: visualizer = dict(type='DetLocalVisualizer', "
            "name='visualizer'), as mmdet's default_runtime.py has."
        )
    backends = list(cfg.visualizer.get('vis_backends') or [])
    if not any(_class_name(backend) == 'TensorboardVisBackend' for backend in backends):
        cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def _class_name(cfg: dict) -> str:
    """Name of the class that ``type`` means: a class, or a name with a scope or a path before it."""
    kind = cfg.get('type', '')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def build_train_loop(runner: Runner) -> None:
    """Build the training data as ``runner.train()`` does first, and raise a clear error if no image is left.

    mmengine fails on a data set without images before it calls any hook.

    Raises:
        ValueError: If no annotation of the training set can be used (see :class:`~uotod_mmdet.hooks.DatasetFitHook`),
            or its images do not fill a batch.
        FileNotFoundError: If its annotations are not there, with what to set.
    """
    try:
        empty = len(runner.train_loop.dataloader) == 0
    except FileNotFoundError as error:
        raise FileNotFoundError(_where_data_should_be(error, runner.cfg, 'train')) from error
    except (AssertionError, IndexError, ValueError, ZeroDivisionError) as error:
        dataset_cfg = _unfiltered(runner.cfg.train_dataloader.dataset)
        try:
            check_dataset(DATASETS.build(dataset_cfg), runner)
        except NoObjectsError as explained:
            raise explained from error
        raise
    if empty:
        dataset, loader = runner.train_loop.dataloader.dataset, runner.cfg.train_dataloader
        check_dataset(dataset, runner)
        raise ValueError(
            f'The training set holds {len(dataset)} images, fewer than batch_size={loader.get("batch_size")}, and '
            'drop_last=True leaves no batch: lower train_dataloader.batch_size or leave drop_last out.'
        )


def build_test_loop(runner: Runner) -> None:
    """Build the test data as ``runner.test()`` does first.

    Raises:
        FileNotFoundError: If its annotations are not there, with what to set.
    """
    try:
        _ = runner.test_loop
    except FileNotFoundError as error:
        raise FileNotFoundError(_where_data_should_be(error, runner.cfg, 'test')) from error


def _where_data_should_be(error: FileNotFoundError, cfg: Config, split: str) -> str:
    """A sentence on a missing annotation file: which data set, and which variable or key of the config names it."""
    dataset = cfg[f'{split}_dataloader'].dataset
    while 'dataset' in dataset:  # of a data set around another one
        dataset = dataset['dataset']
    root = dataset.get('data_root') or ''
    variables = [
        name
        for name, default in re.findall(r'\{\{[\'"]?\s*\$(\w+)\s*:\s*(\S*?)\s*[\'"]?\}\}', cfg.text or '')
        if root and root.startswith(os.environ.get(name, default))
    ]
    evaluator = '' if split == 'train' else f', and ann_file of {split}_evaluator'
    variable = f'the environment variable {variables[0]} to the folder of the data set, or ' if variables else ''
    return (
        f'The {_class_name(dataset)} of {split}_dataloader is not at data_root={root!r}: there is no '
        f'{error.filename or error}. Set {variable}data_root and ann_file of {split}_dataloader.dataset{evaluator}.'
    )


def _unfiltered(dataset_cfg: dict) -> dict:
    """The config of a data set, or of those inside wrappers, without filter and serialization."""
    if isinstance(dataset_cfg, (list, tuple)):
        return [_unfiltered(part) for part in dataset_cfg]
    if 'dataset' in dataset_cfg:
        return _unfiltered(dataset_cfg['dataset'])
    if 'datasets' in dataset_cfg:
        return {**dataset_cfg, 'datasets': _unfiltered(dataset_cfg['datasets'])}
    return {**dataset_cfg, 'filter_cfg': None, 'serialize_data': False}


def end_distributed() -> None:
    """End this process of a distributed run; of any other, do nothing.

    gloo's threads outlive the process group, and now and then one aborts the process while the interpreter shuts down
    ("terminate called without an active exception", pytorch issue 190489); torchrun then kills the others, maybe
    while they write a checkpoint. So the processes wait for each other, and under gloo exit without that shutdown.
    """
    if not is_distributed():
        return
    gloo = torch.distributed.get_backend() == 'gloo'
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if gloo:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _use_cpu_processes(cfg: Config) -> None:
    """Let several processes train on CPUs: mmengine's own start-up and wrapper ask for a GPU."""
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {}, device_ids=None)
    cfg.model_wrapper_cfg = wrapper
    if 'env_cfg' not in cfg:
        cfg.env_cfg = dict()
    cfg.env_cfg.setdefault('dist_cfg', {})['backend'] = 'gloo'
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
