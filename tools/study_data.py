"""Data sets of studies: a COCO or VOC folder as COCO annotation files, with folds where it has no validation split."""

from pathlib import Path

from mmengine.config import Config
from study_file import Run


def use_folder(cfg: Config, data: dict, run: Run, files: Path) -> None:
    raise NotImplementedError
