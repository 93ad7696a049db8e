"""Study files: ``load_study`` reads and checks one; a ``Study`` knows its runs and their configs."""

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parent.parent
METRICS = tuple(
    metric + nms for nms in ('', '_without_nms') for metric in ('AP', 'AP50', 'AP75', 'AP_s', 'AP_m', 'AP_l', 'AR')
)
STUDY_KEYS = (
    'title',
    'question',
    'arms',
    'baseline',
    'data',
    'seeds',
    'metrics',
    'claims',
    'options',
    'epochs',
    'curves',
)
ARM_KEYS = ('config', 'options', 'epochs', 'baseline', 'threads')
FOLDER_KEYS = ('folds', 'group', 'img_scale', 'batch_size')
DATA_KEYS = ('options', 'epochs', 'seeds', 'folder', *FOLDER_KEYS)
CLAIM_KEYS = (
    ('text', 'kind', 'arm', 'metric', 'than', 'than_metric', 'at_least', 'at_most', 'judge', 'data', 'pooled'),
    ('difference', 'ratio', 'epochs'),
    ('interval', 'mean', 'reach'),
)
# What decides the result of a run, beside its seed and the code.
HASHED = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'load_from',
)
PATHS = ('data_root', 'ann_file', 'data_prefix')


class StudyError(Exception):
    """What is wrong with a study, its results or its data, in a sentence for the user."""


@dataclass(frozen=True)
class Run:
    """One training: an arm on a data set, or on a fold of it, from a seed."""

    arm: str
    data: str
    seed: int
    fold: int | None = None

    @property
    def replicate(self) -> tuple[int, int]:
        """What runs share that are compared in pairs: seed and fold."""
        return self.seed, -1 if self.fold is None else self.fold

    def __str__(self) -> str:
        fold = '' if self.fold is None else f' fold {self.fold}'
        return f'{self.arm}, {self.data}, seed {self.seed}{fold}'

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        fold = '' if self.fold is None else f'-fold{self.fold}'
        return f'{self.data}-{self.arm}-seed{self.seed}{fold}'.replace('/', '_').replace(' ', '_')


@dataclass(frozen=True)
class Study:
    """A study as its file says, checked; see docs/studies.md for the keys."""

    path: Path
    title: str
    question: str
    arms: dict[str, dict]
    baseline: str
    data: dict[str, dict]
    seeds: list[int]
    metrics: list[str]
    claims: list[dict]
    options: dict
    epochs: int | None
    curves: list[str]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def results(self) -> Path:
        """The file of results, committed beside the study."""
        return self.path.parent / 'results' / f'{self.name}.jsonl'

    def baseline_of(self, arm: str) -> str:
        """The arm that ``arm`` is compared with."""
        return self.arms[arm].get('baseline', self.baseline)

    def runs(self) -> list[Run]:
        """All runs: replicate by replicate over the arms, so that what is done of a stopped study can be compared."""
        replicates = {
            name: [
                (seed, fold)
                for seed in data.get('seeds', self.seeds)
                for fold in (range(data['folds']) if data.get('folds') else [None])
            ]
            for name, data in self.data.items()
        }
        return [
            Run(arm, name, *replicates[name][index])
            for index in range(max(map(len, replicates.values())))
            for name in self.data
            if index < len(replicates[name])
            for arm in self.arms
        ]

    def config(self, arm: str, data: str) -> Config:
        """The config of an arm on a data set, with all overrides, without the files of a data folder.

        Raises:
            StudyError: If the config is not there or the overrides do not fit it.
        """
        path = ROOT / self.arms[arm]['config']
        if not path.is_file():
            raise StudyError(f'{self.path.name}: the config {self.arms[arm]["config"]} of arm {arm!r} is not there.')
        cfg = Config.fromfile(path)
        parts = (dict(options=self.options, epochs=self.epochs), self.data[data], self.arms[arm])
        for part in parts:
            try:
                cfg.merge_from_dict(to_plain(part.get('options') or {}))
            except (KeyError, TypeError, IndexError) as error:
                raise StudyError(
                    f'{self.path.name}: the options of arm {arm!r} do not fit {path.name}: {error}'
                ) from error
        epochs = [part['epochs'] for part in parts if part.get('epochs')]
        if epochs:
            set_epochs(cfg, epochs[-1])
        return cfg

    @functools.cached_property
    def hashes(self) -> dict[tuple[str, str], str]:
        """``config_hash`` of each arm and data set."""
        return {(arm, data): self.config_hash(arm, data) for data in self.data for arm in self.arms}

    def config_hash(self, arm: str, data: str) -> str:
        """Checksum of what decides the result, paths left out."""
        cfg = self.config(arm, data)
        content = {key: without_paths(cfg[key]) for key in HASHED if cfg.get(key) is not None}
        content['data'] = {key: self.data[data][key] for key in FOLDER_KEYS if key in self.data[data]}
        return hashlib.sha256(json.dumps(to_plain(content), sort_keys=True, default=repr).encode()).hexdigest()[:12]


def to_plain(value: Any) -> Any:
    """The value with dicts and lists in place of mmengine's; keys in the order of the file."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(item) for item in value)
    return value


def without_paths(value: Any) -> Any:
    """The value of a config without the places of the data; Color Boxes with its defaults, written or not."""
    if isinstance(value, dict):
        kept = {key: without_paths(item) for key, item in value.items() if key not in PATHS}
        if value.get('type') == 'uotod_mmdet.ColorBoxesDataset':
            kept = dict(size='small', split='val' if value.get('test_mode') else 'train') | kept
        return kept
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    return value


def set_epochs(cfg: Config, epochs: int) -> None:
    """Train for ``epochs``, and stretch the learning rate's schedule to it; what would begin later is left out.

    Raises:
        StudyError: If the training loop counts iterations.
    """
    before = cfg.train_cfg.get('max_epochs')
    if before is None:
        raise StudyError(f'epochs={epochs} needs a config that counts epochs; set train_cfg.max_iters by options.')
    cfg.train_cfg.max_epochs = epochs
    schedulers = cfg.get('param_scheduler') or []
    kept = []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if scheduler.get('by_epoch', True):
            begin = scheduler.get('begin', 0)
            if begin >= epochs:
                continue
            if scheduler.get('end') == before:
                scheduler.end = epochs
            if scheduler.get('T_max') == before - begin:
                scheduler.T_max = epochs - begin
            if 'milestones' in scheduler:
                scheduler.milestones = [round(milestone * epochs / before) for milestone in scheduler.milestones]
        kept.append(scheduler)
    cfg.param_scheduler = kept


def check_names(given: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    """Check that all names are known.

    Raises:
        StudyError: For the first that is not, with those that are.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else '.'
            raise StudyError(f'{where}: {name!r} is not {what} (there are: {", ".join(map(str, known))}){hint}')


def load_study(path: str | Path) -> Study:
    """Read a study file and check it.

    Raises:
        StudyError: If it is not there, or names an arm, a data set, a metric or a key that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f'The study {path} is not there; give the path of a study file, such as studies/nms.py.')
    content = to_plain(Config.fromfile(path)._cfg_dict.to_dict())
    where = path.name
    check_names((key for key in content if not key.startswith('_')), STUDY_KEYS, 'a key of a study', where)
    for key in ('title', 'question', 'arms', 'baseline', 'data'):
        if not content.get(key):
            raise StudyError(f'{where}: {key!r} is missing; a study needs title, question, arms, baseline and data.')
    study = Study(
        path=path.resolve(),
        seeds=list(content.get('seeds') or [0]),
        metrics=list(content.get('metrics') or ['AP']),
        claims=list(content.get('claims') or []),
        options=content.get('options') or {},
        epochs=content.get('epochs'),
        curves=list(content.get('curves') or []),
        **{key: content[key] for key in ('title', 'question', 'arms', 'baseline', 'data')},
    )
    for name, arm in study.arms.items():
        check_names(arm, ARM_KEYS, 'a key of an arm', f'{where}, arm {name!r}')
        if 'config' not in arm:
            raise StudyError(f'{where}, arm {name!r}: config is missing; give config="configs/...py".')
        check_names([study.baseline_of(name)], study.arms, 'an arm', f'{where}, baseline')
    for name, data in study.data.items():
        check_names(data, DATA_KEYS, 'a key of a data set', f'{where}, data {name!r}')
    check_names(study.metrics, METRICS, 'a metric', f'{where}, metrics')
    for index, claim in enumerate(study.claims):
        _check_claim(study, claim, f'{where}, claims[{index}]')
    return study


def _check_claim(study: Study, claim: dict, where: str) -> None:
    keys, kinds, judges = CLAIM_KEYS
    check_names(claim, keys, 'a key of a claim', where)
    for key in ('text', 'kind', 'arm'):
        if key not in claim:
            raise StudyError(f'{where}: {key!r} is missing.')
    check_names([claim['kind']], kinds, 'a kind of claim', where)
    check_names([claim.get('judge', 'interval')], judges, 'a way to judge', where)
    check_names([claim[key] for key in ('arm', 'than') if key in claim], study.arms, 'an arm', where)
    check_names([claim[key] for key in ('metric', 'than_metric') if key in claim], study.metrics, 'a metric', where)
    check_names(claim.get('data', []), study.data, 'a data set', where)
    if ('at_least' in claim) == ('at_most' in claim):
        raise StudyError(f'{where}: give one of at_least and at_most.')
