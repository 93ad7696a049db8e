"""What ``tools/train.py`` and ``tools/test.py`` do to a config before mmengine's Runner sees it."""

import argparse
import atexit
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that mmdet's train and test tools share."""
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and results; default: work_dirs/<name of the config>'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config: key=value pairs such as train_cfg.max_epochs=2; '
        'lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started; tools/dist_train.sh uses pytorch',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config named on the command line and apply the common flags."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _use_cpu_processes(cfg)
    return cfg


def add_custom_hook(cfg: Config, **hook: object) -> None:
    """Append a hook to ``custom_hooks`` of a config."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def end_distributed() -> None:
    """End this process of a distributed run; of any other, do nothing.

    gloo's threads outlive the process group, and now and then one aborts the process while the interpreter shuts down
    ("terminate called without an active exception", pytorch issue 190489); torchrun then kills the others, maybe
    while they write a checkpoint. So they wait for each other, and under gloo each leaves without that shutdown.
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
    cfg.env_cfg.setdefault('dist_cfg', {})['backend'] = 'gloo'
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
