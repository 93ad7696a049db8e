"""The built-in study of ``study.py run --data FOLDER``: which strategy suits my data?"""

import re
from pathlib import Path

from study_data import find_folder, read_folder

FOLDS = 4
SEEDS = [0, 1]
STUDY = """# Which strategy suits this data set? Made by `python tools/study.py run --data`. Change it as you like; then
# `python tools/study.py run` with the path of this file goes on, and `report` with it writes the report.
title = 'Strategies on {name}'
question = 'Does tiny GFL learn this data set better from transport, read hard or soft, than from stock ATSS?'

arms = {{
    'stock ATSS': dict(config='configs/color_boxes/gfl_tiny_atss.py'),
    'transport, hard': dict(config='configs/color_boxes/gfl_tiny_sinkhorn.py'),
    'transport, soft': dict(config='configs/color_boxes/gfl_tiny_soft.py'),
}}
baseline = 'stock ATSS'
data = {{{name!r}: dict(folder={folder!r}, img_scale=(320, 320), batch_size={batch_size}{folds})}}
epochs = {epochs}
seeds = {seeds}
metrics = ['AP', 'AP50', 'AP_s', 'AP_m', 'AP_l', 'AR']
options = dict(train_cfg=dict(val_interval={val_interval}))
"""


def write_study(folder: str, work_dir: Path, epochs: int | None, seeds: list[int] | None) -> Path:
    """Write the study of a folder into ``work_dir``; its path.

    Without a validation split all images are used in folds. By default small data sets are trained for so many epochs
    that 20 images end within ten minutes on two cores.

    Raises:
        StudyError: If the folder is not there or cannot be read.
    """
    path = find_folder(folder)
    found = read_folder(path)
    folds = ''
    num_train = len(found.splits['train'])
    if 'val' not in found.splits:
        count = min(FOLDS, len(found.images))
        print(f'{path.name} has no validation split: each image is validated once, in {count} folds.')
        folds = f', folds={count}'
        num_train = num_train * (count - 1) // count
        seeds = seeds or SEEDS[:1]  # the folds are the repetitions
    epochs = epochs or max(30, min(45, 700 // max(1, num_train)))
    name = re.sub(r'\W+', '_', path.name)
    text = STUDY.format(
        name=name,
        folder=str(path),
        folds=folds,
        epochs=epochs,
        seeds=seeds or SEEDS,
        batch_size=max(2, min(8, num_train // 4)),
        val_interval=max(1, epochs // 10),
    )
    study = work_dir / name / f'{name}.py'
    study.parent.mkdir(parents=True, exist_ok=True)
    study.write_text(text)
    print(f'The study is {study}.')
    return study
