"""Train one step of every mmdet config that names an assigner, loss or head of ours, without and with the override.

`custom_imports = dict(imports=['uotod_mmdet.override'])` gives mmdet's names to our classes. Then every loss of a
training step must be that of mmdet's own classes, or the model must be refused with one sentence when it is built.

The configs are those of the installed mmdet. Backbones become a narrow ResNet-18 with the same strides, transformers
get two layers, images 128 pixels; heads, losses and assigners stay what they are. All configs take about ten minutes.

    python tools/check_override.py
    python tools/check_override.py --match 'gfl|vfnet'
    python tools/check_override.py --sample 20
"""

import argparse
import contextlib
import copy
import gc
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
RTOL, ATOL = 1e-4, 1e-6
CLASSES_OF_BATCH = 4
CHANNELS = (8, 16, 32, 64)  # of the narrow ResNet-18, at strides 4, 8, 16, 32


class Skip(Exception):
    """Why a config cannot be run here."""


class Outcome(NamedTuple):
    config: str
    verdict: str  # equal, refused, differs, crash, skipped
    words: str


def config_folder() -> Path:
    import mmdet

    return Path(mmdet.__file__).parent / '.mim' / 'configs'


def types_in(value: Any) -> Iterator[str]:
    """Every ``type`` of a config."""
    if isinstance(value, dict):
        if value.get('type') is not None:
            yield value['type'] if isinstance(value['type'], str) else value['type'].__name__
        for entry in value.values():
            yield from types_in(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from types_in(entry)


def find_configs(match: Optional[str] = None) -> list[str]:
    """Paths of the configs whose model holds a shared name, below mmdet's config folder."""
    from mmengine.config import Config

    folder, names, found = config_folder(), shared_names(), []
    for path in sorted(folder.rglob('*.py')):
        name = str(path.relative_to(folder))
        if '_base_' in path.parts or (match and not re.search(match, name)):
            continue
        with contextlib.suppress(Exception):  # some name files or packages that are not there
            model = Config.fromfile(path).get('model')
            if model is not None and names & set(types_in(model)):
                found.append(name)
    return found


def shared_names() -> set[str]:
    """Names of mmdet that the override gives to our classes."""
    import mmdet.models  # noqa: F401
    import mmdet.registry

    from uotod_mmdet.registry import MODELS, TASK_UTILS

    names = set()
    for ours, theirs in ((MODELS, mmdet.registry.MODELS), (TASK_UTILS, mmdet.registry.TASK_UTILS)):
        ours.import_from_location()
        theirs.import_from_location()
        for name, cls in ours.module_dict.items():
            present = theirs.module_dict.get(name)
            if present is not None and present is not cls:
                names.add(name)
    return names


# Reduction


def reduce_model(model: Any) -> None:
    """Cut a model config down in place.

    Raises:
        Skip: If a model of this kind cannot be run here.
    """
    if 'data_preprocessor' in model and model.data_preprocessor is not None:
        model.data_preprocessor.batch_augments = None
    if 'teacher_config' in model:
        from mmengine.config import Config

        teacher = model.teacher_config
        if isinstance(teacher, str):
            teacher = Config.fromfile(config_folder().parent / teacher)
        reduce_model(teacher.model)
        model.update(teacher_config=dict(model=teacher.model), teacher_ckpt=None)
    if 'language_model' in model:
        model.language_model = dict(type='TinyLanguageModel')
    _reduce_backbone(model)
    _walk(model)
    for name in ('num_queries', 'num_proposals'):
        for part in (model, model.get('rpn_head') or {}):
            if part.get(name, 0) > 50:
                part[name] = 50


def _reduce_backbone(model: Any) -> None:
    """Replace the backbone by a narrow one of the same strides, and adapt the modules that read it."""
    backbone, kind = model.backbone, model.backbone.type
    if kind in ('SSDVGG', 'MobileNetV2'):
        backbone.init_cfg = None
        return
    neck = model.get('neck')
    neck = neck[0] if isinstance(neck, (list, tuple)) else neck
    reader = neck or model.get('panoptic_head') or model.get('track_head')
    if reader is None:
        raise Skip(f'nothing says what the backbone {kind} gives')
    stages = tuple(backbone.get('out_indices') or range(4))
    if kind in ('CSPNeXt', 'CSPDarknet'):  # whose last stages go to the neck, the first of them with stride 8
        stages = tuple(range(1, 1 + len(reader.in_channels)))
    if len(stages) != len(reader.in_channels):
        raise Skip(f'{kind} gives {len(stages)} levels, {len(reader.in_channels)} are read')
    backbone.clear()
    if max(stages) < len(CHANNELS):
        reader.in_channels = [CHANNELS[index] for index in stages]
        backbone.update(type='ResNet', depth=18, base_channels=CHANNELS[0], out_indices=stages, style='pytorch')
    else:
        reader.in_channels = [32, 64, 96, 128]
        backbone.update(type='CSPNeXt', arch='P6', widen_factor=0.125, deepen_factor=0.167, out_indices=(2, 3, 4, 5))
        backbone.expand_ratio = 0.5
    if reader.type == 'CSPNeXtPAFPN':
        reader.num_csp_blocks = 1
        if reader.get('norm_cfg', {}).get('type') == 'GN':
            reader.norm_cfg = dict(type='GN', num_groups=4)


def _walk(value: Any) -> None:
    """General edits everywhere: no pretrained weights, two layers, small feed-forward parts, no SyncBN."""
    if isinstance(value, dict):
        checkpoint = value.get('init_cfg')
        if isinstance(checkpoint, dict) and checkpoint.get('type') == 'Pretrained':
            value.pop('init_cfg')
        if value.get('type') in ('SyncBN', 'MMSyncBN'):
            value['type'] = 'BN'
        if 'layer_cfg' in value and isinstance(value.get('num_layers'), int):
            value['num_layers'] = min(value['num_layers'], 2)
        if 'num_cp' in value:  # layers whose activations are computed again
            value['num_cp'] = 0
        if value.get('feedforward_channels', 0) > 256:
            value['feedforward_channels'] = 256
        for name in ('with_cp', 'use_checkpoint'):
            if value.get(name):
                value[name] = False
        for entry in value.values():
            _walk(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _walk(entry)


# One training step


def batch_for(model: Any, size: int = 128) -> dict:
    """Two images with three boxes and one, their masks and, for panoptic heads, their semantic maps."""
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample, TrackDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    if any('SSD' in kind for kind in types_in(model)):
        size = 300 if 'SSDVGG' in types_in(model) else 320
    rng = np.random.default_rng(0)
    inputs, samples = [], []
    for count in (3, 1):
        corners = rng.uniform(0, 0.5 * size, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.2 * size, 0.45 * size, (count, 2))], 1)
        masks = np.zeros((count, size, size), dtype=np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
            mask[y1:y2, x1:x2] = 1
        labels = torch.from_numpy(rng.integers(0, _num_classes(model), count))
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                pad_shape=(size, size),
                batch_input_shape=(size, size),
                scale_factor=(1.0, 1.0),
                flip=False,
                img_path=f'image{len(samples)}.jpg',
                text=('red box', 'green box', 'blue box', 'box'),
                custom_entities=True,
            )
        )
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32), labels=labels)
        if model.get('data_preprocessor', {}).get('pad_mask') or any('Ins' in kind for kind in types_in(model)):
            sample.gt_instances.masks = BitmapMasks(masks, size, size)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        if 'panoptic_head' in model:
            things = model.panoptic_head.num_things_classes
            stuff = np.full((size, size), things if model.panoptic_head.num_stuff_classes else 255, dtype=np.int64)
            for mask, label in zip(masks, labels):
                stuff[mask.astype(bool)] = label
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(stuff)[None])
        inputs.append(torch.from_numpy(rng.integers(0, 255, (3, size, size)).astype(np.uint8)))
        samples.append(sample)
    if 'track_head' in model:  # each image becomes a video of two frames
        for index, sample in enumerate(samples):
            sample.gt_instances.instances_ids = torch.arange(len(sample.gt_instances))
            samples[index] = TrackDataSample()
            samples[index].video_data_samples = [sample, copy.deepcopy(sample)]
        inputs = [torch.stack([image, image.flip(2)]) for image in inputs]
    return dict(inputs=inputs, data_samples=samples)


def _num_classes(model: Any) -> int:
    """Number of classes of the batch, at most that of each head."""
    found = [CLASSES_OF_BATCH]

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(value[name] for name in ('num_classes', 'num_things_classes') if name in value)
            for entry in value.values():
                walk(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                walk(entry)

    walk({key: value for key, value in model.items() if key not in ('backbone', 'rpn_head', 'teacher_config')})
    return max(min(found), 1)


def reseed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def step(name: str) -> dict:
    """Losses of one training step by name, or the error and its stage."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.logging import MessageHub
    from mmengine.registry import init_default_scope

    stage = 'build'
    try:
        cfg = Config.fromfile(config_folder() / name)
        init_default_scope('mmdet')
        model = cfg.model
        reduce_model(model)
        batch = batch_for(model)
        reseed()
        detector = MODELS.build(copy.deepcopy(model))
        detector.init_weights()
        detector.train()
        stage = 'step'
        MessageHub.get_current_instance().update_info('epoch', 100)  # TOOD: past the epochs with other losses
        reseed()
        data = detector.data_preprocessor(batch, True)
        losses = detector(**data, mode='loss')
        return dict(losses={key: _total(value) for key, value in losses.items() if 'loss' in key})
    except Skip as reason:
        return dict(skipped=str(reason))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return dict(
            stage=stage,
            error=type(error).__name__,
            message=str(error).strip(),
            place=f'{Path(frame.filename).name}:{frame.lineno}',
        )


def _total(value: Any) -> float:
    return float(
        sum(entry.detach().double().sum() for entry in value) if isinstance(value, (list, tuple)) else value.sum()
    )


def register_language_model() -> None:
    """A stand-in for BERT, whose weights are not here: one token for a word, random embeddings."""
    import torch
    from mmdet.registry import MODELS
    from torch import nn

    class Tokenized(dict):
        def __init__(self, captions: Sequence[str]) -> None:
            self.spans = [[match.span() for match in re.finditer(r'\w+|[^\w\s]', caption)] for caption in captions]
            self.words = [[caption[a:b] for a, b in spans] for caption, spans in zip(captions, self.spans)]
            length = max(map(len, self.words))
            ids = [[sum(map(ord, word)) % 97 + 1 for word in words] for words in self.words]
            self.input_ids = torch.tensor([row + [0] * (length - len(row)) for row in ids])
            super().__init__(input_ids=self.input_ids)

        def char_to_token(self, place: int) -> Optional[int]:
            return next((i for i, (a, b) in enumerate(self.spans[0]) if a <= place < b), None)

    @MODELS.register_module()
    class TinyLanguageModel(nn.Module):
        pad_to_max, max_tokens = False, 256

        def __init__(self) -> None:
            super().__init__()
            self.language_backbone = nn.Module()
            self.language_backbone.body = nn.Module()
            self.language_backbone.body.language_dim = 32
            self.embedding = nn.Embedding(98, 32)

        def tokenizer(self, captions: Sequence[str], **kwargs: Any) -> Tokenized:
            return Tokenized(captions)

        def forward(self, captions: Sequence[str], **kwargs: Any) -> dict:
            ids = Tokenized(captions).input_ids
            embedded, real = self.embedding(ids), ids > 0
            masks = torch.eye(ids.size(1), dtype=torch.bool) | (real[:, None] & real[:, :, None])
            places = torch.arange(ids.size(1)).expand_as(ids)
            return dict(embedded=embedded, masks=masks, hidden=embedded, position_ids=places, text_token_mask=real)


# All configs, in two processes


def work(names: Sequence[str], override: bool, to: str) -> None:
    """Write a line before and after each config, which shows the config of a crash."""
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    import mmdet.models  # noqa: F401

    register_language_model()
    if override:
        import uotod_mmdet.override  # noqa: F401
    with open(to, 'a', buffering=1) as file:
        for name in names:
            file.write(json.dumps(dict(begun=name)) + '\n')
            file.write(json.dumps(dict(config=name, **step(name))) + '\n')
            gc.collect()


def start(names: Sequence[str], override: bool, to: str) -> subprocess.Popen:
    command = [sys.executable, '-W', 'ignore', __file__, '--work', json.dumps(list(names)), '--to', to]
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}', 'OMP_NUM_THREADS': '1'}
    command += ['--override'] if override else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def results(names: Sequence[str], override: bool, to: str, child: subprocess.Popen) -> dict[str, dict]:
    """Wait for the child process; if it has died, start another for the remaining configs."""
    found: dict[str, dict] = {}
    while True:
        _, errors = child.communicate()
        lines = [json.loads(line) for line in Path(to).read_text().splitlines()]
        found.update({line['config']: line for line in lines if 'config' in line})
        left = [name for name in names if name not in found]
        if not left:
            return found
        begun = [line['begun'] for line in lines if 'begun' in line and line['begun'] not in found]
        if not begun:
            raise RuntimeError(f'no config could be run:\n{errors}')
        words = f'the process ended ({child.returncode})'
        found[begun[0]] = dict(config=begun[0], stage='step', error='Crash', message=words, place='')
        with open(to, 'a') as file:
            file.write(json.dumps(found[begun[0]]) + '\n')
        child = start(left[1:], override, to)


def compare(config: str, plain: dict, ours: dict) -> Outcome:
    """What the override did to a config."""
    if 'skipped' in plain:
        return Outcome(config, 'skipped', plain['skipped'])
    if 'error' in plain:
        words = plain['message'].split('\n')[0][:120]
        return Outcome(config, 'skipped', f'fails without the override too: {plain["error"]}: {words}')
    if 'error' in ours:
        words = f'{ours["error"]}: {ours["message"]}'
        if ours['stage'] == 'build' and ours['error'] == 'ValueError' and len(ours['message'].splitlines()) == 1:
            return Outcome(config, 'refused', ours['message'])
        return Outcome(config, 'crash', f'at the {ours["stage"]}: {words[:300]} ({ours["place"]})')
    names = sorted(plain['losses'].keys() ^ ours['losses'].keys())
    if names:
        return Outcome(config, 'differs', f'only one of them has {", ".join(names)}')
    wrong = []
    for name, expected in plain['losses'].items():
        found = ours['losses'][name]
        if not abs(found - expected) <= ATOL + RTOL * abs(expected):
            wrong.append(f'{name} {found:.6g} instead of {expected:.6g}')
    if wrong:
        return Outcome(config, 'differs', '; '.join(wrong[:3]))
    return Outcome(config, 'equal', f'{len(plain["losses"])} losses, {sum(plain["losses"].values()):.4g}')


def check(names: Sequence[str]) -> list[Outcome]:
    """Run each config without and with the override, both at once."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {override: f'{folder}/{override}.jsonl' for override in (False, True)}
        children = {override: start(names, override, path) for override, path in paths.items()}
        found = {override: results(names, override, paths[override], children[override]) for override in paths}
    return [compare(name, found[False][name], found[True][name]) for name in names]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--match', help='only configs whose path matches this regular expression; default: all')
    parser.add_argument('--sample', type=int, help='only so many of them, spread evenly; default: all')
    parser.add_argument('--work', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--override', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--to', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.to:
        work(args.work, args.override, args.to)
        return 0
    begun = time.time()
    names = find_configs(args.match)
    if args.sample:
        names = names[:: max(1, len(names) // args.sample)][: args.sample]
    outcomes = check(names)
    for outcome in outcomes:
        print(f'{outcome.verdict:8} {outcome.config}: {outcome.words}')
    counts = Counter(outcome.verdict for outcome in outcomes)
    kinds = ('equal', 'refused', 'differs', 'crash', 'skipped')
    print(', '.join(f'{counts[kind]} {kind}' for kind in kinds), f'of {len(names)} in {time.time() - begun:.0f} s')
    return int(bool(counts['differs'] or counts['crash']))


if __name__ == '__main__':
    sys.exit(main())
