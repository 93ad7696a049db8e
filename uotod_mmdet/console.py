"""A console that shows how training goes and little else: ``--quiet`` of ``tools/train.py`` and ``tools/test.py``."""

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import mmengine.config.config
import pycocotools.coco
from mmdet.registry import RUNNERS
from mmengine.config import Config
from mmengine.runner import Runner

PACKAGE = str(Path(__file__).parent)

LEFT_OUT = (
    '\n' + '-' * 60 + '\nSystem environment',
    'Config:\n',
    'Hooks will be executed',
    'Distributed training is not used',
    'Exp name: ',
)
"""How messages begin that are for the log file only."""


def build_runner(cfg: Config, quiet: bool) -> Runner:
    """The runner of a config; ``quiet``: its console leaves out what :data:`LEFT_OUT` names, its log file does not."""
    base = RUNNERS.get(cfg.runner_type) if 'runner_type' in cfg else Runner
    kind: type[Runner] = type(base.__name__, (_Quiet, base), {}) if quiet else base
    return kind.from_cfg(cfg)


class _Quiet:
    """Before a class of runners."""

    def build_logger(self, *args: object, **kwargs: object) -> logging.Logger:
        logger = super().build_logger(*args, **kwargs)  # type: ignore[misc]
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_is_shown)
        pycocotools.coco.print = lambda *args, **kwargs: None  # "loading annotations into memory..."
        warnings.filterwarnings('ignore', module=r'(?!uotod_mmdet)')
        return logger


def _is_shown(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not message.startswith(LEFT_OUT) and 'will be deprecated' not in message


def sentence_of(error: BaseException) -> Optional[str]:
    """The message of an error that this package or a config raised, without the registries' words around it.

    None for any other error, of which the traceback may be the only thing that tells.
    """
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    of_config = len(frames) > 1 and frames[-2].filename == mmengine.config.config.__file__
    return str(error) if ours or of_config else None


@contextlib.contextmanager
def plain_errors(quiet: bool, work_dir: Path) -> Iterator[None]:
    """``quiet``: let an error of ours end the process with its sentence; its traceback goes into a file.

    Raises:
        SystemExit: In place of an error for which :func:`sentence_of` has a sentence.
    """
    try:
        yield
    except Exception as error:
        sentence = sentence_of(error) if quiet else None
        if sentence is None:
            raise
        work_dir.mkdir(parents=True, exist_ok=True)
        path = work_dir / 'error.txt'
        path.write_text(traceback.format_exc(), encoding='utf-8')
        raise SystemExit(f'{type(error).__name__}: {sentence}\n(the traceback is in {path})') from None
