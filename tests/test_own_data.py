"""Configs of one's own data: the templates, and configs that inherit ours and name another data set."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from test_tools import BCCD_CONFIGS, ROOT, call_tool, draw_cells
from tiny_models import build, loss_of
from tiny_runs import NAMES

TEMPLATES = ROOT / 'configs/_base_/datasets'
OWN = """
_base_ = '{base}'

own = dict(type='CocoDataset', data_root='{root}', ann_file='train.json', data_prefix=dict(img=''))
own['metainfo'] = dict(classes={names})
few = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=own)
train_dataloader = few
val_dataloader = few
test_dataloader = few
val_evaluator = dict(_delete_=True, type='CocoMetric', ann_file='{root}/train.json', metric='bbox')
test_evaluator = val_evaluator
model = dict(bbox_head=dict(num_classes=4))
"""
PROJECT = """
_base_ = [
    './data.py',
    '{configs}/_base_/models/gfl_tiny.py',
    '{configs}/_base_/schedules/tiny_12e.py',
    '{configs}/_base_/runtime.py',
]
model = dict(bbox_head=dict(num_classes=_base_.num_classes))
"""


def filled(template: str, **fields: object) -> str:
    """The text of a template with fields filled, as a user does it."""
    text = (TEMPLATES / template).read_text()
    for field, value in fields.items():
        text, count = re.subn(rf'^{field} = .*# FILL \d.*$', f'{field} = {value!r}', text, flags=re.MULTILINE)
        assert count == 1, field
    assert '# FILL' not in text
    return text


def step_on(cfg: Config) -> torch.Tensor:
    """The loss of the config's model on two images of its training set."""
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    items = [dataset[index] for index in range(2)]
    assert sum(len(item['data_samples'].gt_instances) for item in items) > 0
    return loss_of(build(cfg.model), {key: [item[key] for item in items] for key in ('inputs', 'data_samples')})


@pytest.mark.slow
@pytest.mark.parametrize('base', ['configs/color_boxes/gfl_tiny_soft.py', BCCD_CONFIGS[2]])
def test_config_that_inherits_ours_may_name_its_own_data(tmp_path, data, base, monkeypatch):
    monkeypatch.delenv('BCCD_ROOT', raising=False)
    (tmp_path / 'own.py').write_text(OWN.format(base=ROOT / base, root=data, names=NAMES))
    cfg = Config.fromfile(tmp_path / 'own.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert len(DATASETS.build(dataset)) == 6 and dataset.get('test_mode', False) is (split != 'train')
    assert torch.isfinite(step_on(cfg))


def test_color_boxes_are_split_by_the_mode(tmp_path):
    for mode, split in ((False, 'train'), (True, 'val')):
        kind = dict(type='uotod_mmdet.ColorBoxesDataset', data_root=str(tmp_path), size='mini', test_mode=mode)
        built = DATASETS.build(dict(kind, lazy_init=True))
        assert Path(built.data_prefix['img']).name == split and Path(built.ann_file).name == f'{split}.json'
        assert DATASETS.build(dict(kind, split='train', lazy_init=True)).ann_file.endswith('train.json')


@pytest.mark.slow
def test_coco_template_trains_with_five_fields_filled(tmp_path, data):
    files = dict(train=('train.json', ''), val=('train.json', ''))
    text = filled('coco_template.py', data_root=str(data), classes=NAMES, img_scale=(64, 64), **files)
    (tmp_path / 'data.py').write_text(text)
    (tmp_path / 'own.py').write_text(PROJECT.format(configs=ROOT / 'configs'))
    options = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    options += ['val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']
    printed = call_tool(
        'train.py', tmp_path / 'own.py', '--work-dir', tmp_path / 'work', options=[*options, 'train_cfg.max_epochs=1']
    )
    assert 'Evaluating bbox' in printed
    again = Config.fromfile(tmp_path / 'work/own.py')  # the dump of the run
    assert again.model.bbox_head.num_classes == 4 and again.val_evaluator.ann_file == str(data / 'train.json')


@pytest.mark.slow
def test_voc_template_trains_with_five_fields_filled(tmp_path):
    usable = draw_cells(tmp_path / 'cells')
    fields = dict(train='ImageSets/Main/trainval.txt', val='ImageSets/Main/test.txt')
    text = filled(
        'voc_template.py',
        data_root=str(tmp_path / 'cells'),
        classes=('RBC', 'WBC', 'Platelets'),
        img_scale=(160, 160),
        **fields,
    )
    (tmp_path / 'data.py').write_text(text)
    (tmp_path / 'own.py').write_text(PROJECT.format(configs=ROOT / 'configs'))
    cfg = Config.fromfile(tmp_path / 'own.py')
    train, val = (DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    assert (len(train), len(val)) == (len(usable) + 1, 3)  # the image without objects is background
    assert torch.isfinite(step_on(cfg))


@pytest.mark.slow
def test_missing_test_data_end_the_test_with_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'nowhere'))
    torch.save(dict(state_dict={}), tmp_path / 'none.pth')
    message = (
        rf"The XMLDataset of test_dataloader is not at data_root='{tmp_path}/nowhere': there is no .*test\.txt\. Set "
        'the environment variable BCCD_ROOT to the folder of the data set, or data_root and ann_file of '
        r'test_dataloader\.dataset, and ann_file of test_evaluator\.'
    )
    with pytest.raises(FileNotFoundError, match=message):
        call_tool('test.py', ROOT / BCCD_CONFIGS[0], tmp_path / 'none.pth', '--work-dir', tmp_path)
