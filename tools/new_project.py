"""From a folder of images and boxes to a config that trains.

    python tools/new_project.py DATA

DATA is in COCO, Pascal VOC or YOLO format. A table says what is in it. The config and the annotations, as COCO files,
go to projects/<name of DATA>; DATA itself is not changed. The last line is the command to run next.
"""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from project_data import Data, describe_data, inspect
from study_data import find_folder, to_coco
from study_file import ROOT, StudyError

from uotod_mmdet.assigners import recommended

TEMPLATE = ROOT / 'configs/_base_/datasets/coco_template.py'
HEAD = 'GFLHead'
WHY = """In docs/evidence.md tiny GFL by this
            recipe is above stock ATSS by 0.045 AP on BCCD, 0.006 on pears and 0.038 on Color Boxes, and level on
            aquarium (-0.006, within the folds' differences). RetinaNet gains more over its own stock, and ends below
            GFL on three of these four."""
IMAGES_SEEN = 6000
SECONDS_A_PIXEL = 7e-7
"""Of training, on one core."""
EPOCHS = (12, 150)
SCALES = (320, 640)
WANTED_SIDE = 20
"""Pixels of a median box at which the larger scales stop."""
FINE_SIDE = 16
"""Pixels of a median box below which the pyramid begins at stride 4."""
CONFIG = """# Tiny GFL on {name}, from scratch, trained on the whole plan of unbalanced transport. Made by
# tools/new_project.py; change it as you like. The data set is in data.py.
_base_ = [
    './data.py',
    {bases},
]

max_epochs = {epochs}
model = dict({neck}
    bbox_head=dict(
        type='uotod_mmdet.GFLHead',
        num_classes=_base_.num_classes,
        anchor_generator=dict(octave_base_scale={octave_base_scale}, strides={strides}),  # {anchors}
        loss_cls=dict(type='uotod_mmdet.QualityFocalLoss'),
        loss_dfl=dict(type='uotod_mmdet.DistributionFocalLoss'),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='uotod_mmdet.{preset}')),
)
train_dataloader = dict(batch_size={batch_size})
train_cfg = dict(max_epochs=max_epochs, val_interval={val_interval})
_base_.param_scheduler[1].update(end=max_epochs, T_max=max_epochs - 1)
"""
FULL_SIZE = """# GFL R50 on {name}, from COCO weights, trained on the whole plan of unbalanced transport. Made by
# tools/new_project.py; change it as you like. The data set is in data.py.
_base_ = ['./data.py', 'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py']
import mmengine  # noqa: E402

max_epochs = {epochs}
load_from = '{weights}'
model = mmengine.Config.fromfile({model!r}).model
model.backbone.init_cfg = None  # load_from has these weights, too
model.bbox_head.num_classes = _base_.num_classes
model.train_cfg.assigner = dict(type='uotod_mmdet.{preset}')
train_dataloader = dict(batch_size={batch_size})
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='auto'))
optim_wrapper = dict(optimizer=dict(lr=0.01 * {batch_size} / 16), clip_grad=dict(max_norm=10))  # GFL's is of 16 images
_base_.param_scheduler[1].update(end=max_epochs, milestones=[max_epochs * 2 // 3, max_epochs * 11 // 12])
"""
WEIGHTS = (
    'https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r50_fpn_1x_coco/'
    'gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth'
)


class Choice(NamedTuple):
    """What the config takes from the statistics of the data."""

    scale: int  # pixels of the longer side in training
    sides: tuple[float, float, float]  # 10, 50 and 90 % of the box sides at that scale
    octave_base_scale: int
    strides: list[int]
    epochs: int
    batch_size: int
    minutes: float
    full_size: bool

    @property
    def anchors(self) -> str:
        """The anchors in words."""
        low, high = (self.octave_base_scale * stride for stride in (self.strides[0], self.strides[-1]))
        return f'squares of {low} to {high} pixels'


def choose(data: Data, epochs: int | None = None, full_size: bool = False) -> Choice:
    """Image scale, anchors and schedule by the sizes of images and boxes, and the number of images.

    The full-size detector keeps the anchors of its weights and GFL's schedule, and sees images as large as it can.
    """
    by_class = data.relative_sides()
    relative = np.concatenate(by_class)
    longer = np.median([max(image['width'], image['height']) for image in data.images])
    low, high = SCALES
    wanted = min(max(WANTED_SIDE / np.median(relative), low), high, max(longer, 128))
    if full_size:
        wanted = min(max(longer, high), 1312)
    scale = int(np.ceil(wanted / 32)) * 32
    sides = relative * scale
    first = 4 if np.median(sides) < FINE_SIDE and not full_size else 8
    strides = [first * 2**level for level in range(5)]

    def distance(base: int) -> float:
        """Mean number of octaves from a box to its closest anchor; a rare class counts as much as the others."""
        octaves = [np.abs(np.log2(scale * sides[:, None] / (base * np.array(strides)))) for sides in by_class]
        return np.mean([each.min(1).mean() for each in octaves])

    num_train = len(data.splits['train'])
    epochs = epochs or (12 if full_size else int(np.clip(round(IMAGES_SEEN / num_train), *EPOCHS)))
    pixels = np.mean([i['width'] * i['height'] / max(i['width'], i['height']) ** 2 for i in data.images]) * scale**2
    return Choice(
        scale,
        tuple(np.percentile(sides, (10, 50, 90)).tolist()),
        8 if full_size else min((8, 7, 6, 5, 4), key=distance),
        strides,
        epochs,
        min(4, num_train),
        epochs * num_train * pixels * SECONDS_A_PIXEL / 60,
        full_size,
    )


def name_of(folder: Path) -> str:
    """Name of the project of a data folder: letters of any script, digits and underscores."""
    return re.sub(r'\W+', '_', folder.name).strip('_') or 'project'


def val_interval(choice: Choice) -> int:
    """Epochs from one evaluation to the next."""
    return 1 if choice.full_size else max(1, choice.epochs // 10)


def write_project(data: Data, choice: Choice, out: Path, preset: str) -> Path:
    """Write annotations, data.py and the config into ``out``; path of the config."""
    name = name_of(data.folder)
    out.mkdir(parents=True, exist_ok=True)
    for split, ids in data.splits.items():
        content = to_coco(data.images, data.annotations, ids, data.classes)
        (out / f'{split}.json').write_text(json.dumps(content))
    (out / 'data.py').write_text(fill_template(data, choice, out), encoding='utf-8')
    configs = ROOT / 'configs'
    if out.resolve().is_relative_to(ROOT) and not choice.full_size:
        configs = Path(os.path.relpath(configs, out.resolve()))
    bases = [configs / '_base_' / place for place in ('models/gfl_tiny.py', 'schedules/tiny_12e.py', 'runtime.py')]
    config = out / f'{name}_gfl_{"r50" if choice.full_size else "tiny"}_soft.py'
    text = (FULL_SIZE if choice.full_size else CONFIG).format(
        name=name,
        bases=',\n    '.join(repr(base.as_posix()) for base in bases),
        neck='\n    neck=dict(start_level=0),  # many boxes are tiny' if choice.strides[0] == 4 else '',
        anchors=choice.anchors,
        preset=preset,
        val_interval=val_interval(choice),
        weights=WEIGHTS,
        model=(configs / 'coco/gfl_r50_fpn_1x_soft.py').as_posix(),
        **choice._asdict(),
    )
    config.write_text(text, encoding='utf-8')
    return config


def fill_template(data: Data, choice: Choice, out: Path) -> str:
    """The COCO template with its five fields filled."""
    here = str(out.resolve()) if "'" in str(out.resolve()) else '{{ fileDirname }}'  # mmengine puts it in unescaped
    fields = dict(
        data_root=str(data.folder),
        train=(f'{here}/train.json', ''),
        val=(f'{here}/val.json', ''),
        classes=tuple(data.classes),
        img_scale=(choice.scale, choice.scale),
    )
    text = TEMPLATE.read_text(encoding='utf-8')
    text = text[text.index('_base_ = ') :]
    for field, value in fields.items():
        before, after = re.split(rf'^{field} = .*$', text, maxsplit=1, flags=re.MULTILINE)
        text = f'{before}{field} = {value!r}{after}'
    return f'# {data.folder.name}, as tools/new_project.py found it. The images stay where they are.\n{text}'


def describe_choice(choice: Choice, num_train: int, preset: str) -> str:
    """The choices and their reasons."""
    low, middle, high = choice.sides
    schedule = f'{choice.epochs} epochs of {num_train} images, batches of {choice.batch_size}'
    if choice.full_size:
        model = 'GFL R50 from COCO weights, 32 million parameters: needs a GPU, and a network to fetch them once'
        anchors = f'{choice.anchors}, as in the weights; 10 to 90 % of the boxes are {low:.0f} to {high:.0f} pixels'
    else:
        model = (
            'tiny GFL from scratch, 1 million parameters: trains on a CPU and needs no download (--full-size: GFL R50\n'
            '            from COCO weights, for a GPU)'
        )
        anchors = f'{choice.anchors}, as 10 to 90 % of the boxes are {low:.0f} to {high:.0f} pixels'
        schedule += f'; about {max(1, choice.minutes):.0f} minutes on one free CPU core'
    return f"""The config:
  model     {model}
  strategy  {preset}, the preset of {HEAD}, with the whole plan. {WHY}
  scale     {choice.scale} pixels for the longer side, in which a median box is {middle:.0f} pixels
  anchors   {anchors}
  schedule  {schedule}"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA', help='folder in COCO, Pascal VOC or YOLO format')
    parser.add_argument('--out', type=Path, help='folder of the project; default: projects/<name of DATA>')
    parser.add_argument(
        '--epochs',
        type=int,
        help='default: so many that about 6000 images are seen, from 12 to 150; 12 with --full-size',
    )
    parser.add_argument(
        '--full-size',
        action='store_true',
        help='GFL R50 from COCO weights, for a GPU, in place of tiny GFL from scratch',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the files of a project that is there')
    args = parser.parse_args()
    if args.epochs is not None and args.epochs < 2:
        parser.error(f'--epochs must be at least 2, one of them to warm up; got {args.epochs}')
    return args


def make_project(args: argparse.Namespace) -> None:
    """Look at the data, say what was found, and write the project.

    Raises:
        StudyError: If the data cannot be used, or the project is there already.
    """
    folder = find_folder(args.data)
    out = args.out or Path('projects') / name_of(folder)
    if out.exists() and not args.overwrite:
        raise StudyError(f'--out: {out} is there already; give another folder, or --overwrite to replace its files.')
    data = inspect(folder)
    print(describe_data(data))
    choice, preset = choose(data, args.epochs, args.full_size), recommended(HEAD)
    config = write_project(data, choice, out, preset)
    work_dir = Path('work_dirs') / config.stem
    print(f'\n{describe_choice(choice, len(data.splits["train"]), preset)}\n\nWritten: {out}')
    test = [ROOT / 'tools/test.py', config, work_dir / f'epoch_{choice.epochs}.pth']
    print(f'After training, the COCO table again: {_command(*test)}')
    print(f'Train, and evaluate every {_epochs(val_interval(choice))}: {_command(ROOT / "tools/train.py", config)}')


def _epochs(count: int) -> str:
    return 'epoch' if count == 1 else f'{count} epochs'


def _command(*parts: Path) -> str:
    """A command for the shell, paths below the current folder without what is above."""
    here = Path.cwd()
    shown = (part.relative_to(here) if part.is_relative_to(here) else part for part in parts)
    return ' '.join(['python', *(shlex.quote(str(part)) for part in shown)])


def main() -> None:
    args = parse_args()
    try:
        make_project(args)
    except StudyError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
