"""What `import uotod_mmdet` checks, and what it lets torch.load read."""

import collections
import importlib
import pickle
import re
import subprocess
import sys
import zipfile

import mmcv
import mmdet
import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from packaging.version import Version

from uotod_mmdet.versions import check_versions

MODULES = {'mmengine': mmengine, 'mmcv': mmcv, 'mmdet': mmdet}
FIXES = {
    'mmengine': "pip install 'mmengine>=",
    'mmcv': 'MMCV_WITH_OPS=1 pip install --no-cache-dir --no-build-isolation --no-binary mmcv ',
    'mmdet': "pip install 'mmdet>=",
}
restricted_load = pytest.mark.skipif(Version(torch.__version__) < Version('2.6'), reason='torch reads all by default')


def complaint():
    with pytest.raises(RuntimeError) as caught:
        check_versions()
    return str(caught.value)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install distributions without files, before all others on the path; return their folder."""

    def install(*names, folder='site'):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            info = tmp_path / folder / f'{name.replace("-", "_")}-9.9.9.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n')
        monkeypatch.syspath_prepend(tmp_path / folder)
        importlib.invalidate_caches()
        return tmp_path / folder

    return install


def assert_fixes(message, package):
    assert '`make env`' in message and FIXES[package] in message
    assert not any(fix in message for other, fix in FIXES.items() if other != package)


@pytest.mark.parametrize(
    ('package', 'version'),
    [('mmengine', '0.9.1'), ('mmengine', '1.0.0'), ('mmcv', '1.7.2'), ('mmcv', '3.0.0'), ('mmdet', '3.2.0')],
)
def test_version_that_does_not_fit_is_named_with_its_cure(monkeypatch, package, version):
    monkeypatch.setattr(MODULES[package], '__version__', version)
    message = complaint()
    assert f'uotod_mmdet needs {package}>=' in message and f'found {version}.' in message
    assert_fixes(message, package)


@pytest.mark.parametrize(
    'versions',
    [
        dict(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0'),
        dict(mmengine='0.10.12', mmcv='2.3.6', mmdet='3.5.1'),  # onedl's forks
    ],
)
def test_versions_of_the_original_packages_and_of_their_forks_are_accepted(monkeypatch, versions):
    for package, version in versions.items():
        monkeypatch.setattr(MODULES[package], '__version__', version)
    check_versions()


@pytest.mark.parametrize('version', ['2.1.0', '2.1.0a0+32f93b1', '2.1.2+cu121', '2.15.0', '9.0.0.dev20990101+cpu'])
def test_torch_from_2_1_on_is_accepted_in_silence(monkeypatch, recwarn, version):
    monkeypatch.setattr(torch, '__version__', version)
    monkeypatch.setattr(np, '__version__', '1.26.4')
    check_versions()
    assert not recwarn


def test_torch_that_is_too_old_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.0.1+cu118')
    message = complaint()
    assert message.startswith('uotod_mmdet needs torch>=2.1, found 2.0.1+cu118. To fix it: `make env`')
    assert "`pip install 'torch>=2.1' && pip uninstall -y mmcv mmcv-lite" in message and FIXES['mmcv'] in message


@pytest.mark.parametrize('version', ['2.1.2+cu121', '2.2.2', '2.3.0'])
def test_numpy_2_with_a_torch_for_numpy_1_is_named_with_its_cure(monkeypatch, version):
    monkeypatch.setattr(torch, '__version__', version)
    monkeypatch.setattr(np, '__version__', '2.0.1')
    if version == '2.3.0':
        check_versions()
    else:
        message = complaint()
        assert message.startswith(f'numpy 2.0.1 does not work with torch {version}: ') and "'numpy<2'" in message


@pytest.mark.parametrize(
    ('original', 'fork'),
    [
        ('mmengine', 'onedl-mmengine'),
        ('mmcv', 'onedl-mmcv'),
        ('mmcv-lite', 'onedl-mmcv'),
        ('mmdet', 'onedl-mmdetection'),
    ],
)
def test_both_lineages_in_one_folder_are_refused_with_a_cure(installed, original, fork):
    folder = installed(fork, original)
    message = complaint()
    assert message.startswith(f'{original} 9.9.9 and {fork} 9.9.9 are both installed in {folder}, and both bring')
    assert f'`pip uninstall -y {original} {fork}`' in message


def test_lineages_in_two_folders_do_not_touch_each_other(installed):
    installed('mmengine', 'mmcv', 'mmdet', folder='first')
    installed('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', folder='second')
    check_versions()


@pytest.mark.parametrize('package', MODULES)
def test_missing_package_is_named_with_its_cure(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = complaint()
    assert f'uotod_mmdet cannot import {package}: ' in message
    assert_fixes(message, package)


@pytest.mark.skipif(Version(mmdet.__version__) >= Version('3.4'), reason='the maintained fork of mmdet takes any mmcv')
def test_mmcv_that_mmdet_refuses_is_fixed_by_another_mmcv(monkeypatch):
    monkeypatch.setattr(mmcv, '__version__', '2.2.0')
    monkeypatch.delitem(sys.modules, 'mmdet')  # so that mmdet's own check runs again
    message = complaint()
    assert message.startswith('MMCV==2.2.0 is used but incompatible')
    assert_fixes(message, 'mmcv')


def test_mmcv_lite_is_named_as_such(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    message = complaint()
    assert message.startswith(f'mmcv {mmcv.__version__} has no compiled ops') and 'mmcv-lite' in message
    assert_fixes(message, 'mmcv')


@pytest.mark.slow
def test_import_under_mmcv_without_compiled_ops_says_how_to_fix_it():
    script = """
import sys
import zipfile

class NoOps:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise ModuleNotFoundError("No module named 'mmcv._ext'", name=name)

sys.meta_path.insert(0, NoOps())
import uotod_mmdet
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        f"RuntimeError: mmcv {mmcv.__version__} has no compiled ops (No module named 'mmcv._ext')"
    )
    assert_fixes(message, 'mmcv')


class Call:
    """Pickles as a call of builtins.getattr, as the methods of a HistoryBuffer do."""

    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


@restricted_load
@pytest.mark.parametrize('name', ['min', 'max', 'mean', 'current'])
def test_methods_of_history_buffers_are_read(tmp_path, name):
    torch.save({'method': Call(HistoryBuffer, name)}, tmp_path / 'own.pth')
    assert torch.load(tmp_path / 'own.pth', weights_only=True) == {'method': getattr(HistoryBuffer, name)}


@restricted_load
def test_history_buffer_survives_saving(tmp_path):
    buffer = HistoryBuffer([0.5, 2.0, 1.25], [1, 1, 2])
    torch.save(buffer, tmp_path / 'buffer.pth')
    loaded = torch.load(tmp_path / 'buffer.pth', weights_only=True)
    for ours, theirs in zip(loaded.data, buffer.data):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.mean() == 3.75 / 4  # sum of values / sum of counts
    assert loaded.statistics('max') == 2.0


@restricted_load
def test_checkpoint_is_read_after_the_forks_mmengine_took_its_own_allow_list_away(tmp_path):
    torch.save({'history': HistoryBuffer([0.5], [1]), 'method': Call(HistoryBuffer, 'mean')}, tmp_path / 'own.pth')
    core = np._core if hasattr(np, '_core') else np.core
    bare = [slice, getattr, core.multiarray._reconstruct, core.multiarray.scalar, np.ndarray, np.dtype, HistoryBuffer]
    bare += [type(np.dtype(name)) for name in ('uint32', 'float64', 'int64')]
    with torch.serialization.safe_globals(bare):  # as mmengine.runner.checkpoint of onedl-mmengine 0.10.12
        pass
    assert torch.load(tmp_path / 'own.pth', weights_only=True)['history'].mean() == 0.5


@restricted_load
@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_checkpoint_of_another_numpy_is_read(tmp_path, core):
    torch.save(HistoryBuffer([0.5], [1]), tmp_path / 'own.pth')
    with zipfile.ZipFile(tmp_path / 'own.pth') as source, zipfile.ZipFile(tmp_path / 'other.pth', 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('/data.pkl'):
                content, count = re.subn(rb'numpy\._?core(?=\.multiarray)', core.encode(), content)
                assert count
            target.writestr(name, content)
    assert torch.load(tmp_path / 'other.pth', weights_only=True).mean() == 0.5


@restricted_load
@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, 'register_statistics'),
        (HistoryBuffer, '__class__'),
        (np.ndarray, 'tofile'),
        (np.ndarray, 'max'),
        (torch.Tensor, 'mean'),
        (collections.OrderedDict, '__subclasses__'),
    ],
)
def test_checkpoint_that_asks_for_another_attribute_is_refused(tmp_path, owner, name):
    torch.save({'state_dict': {}, 'evil': Call(owner, name)}, tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError, match=f"a checkpoint may not ask for '{name}' of"):
        torch.load(tmp_path / 'evil.pth', weights_only=True)


@restricted_load
def test_checkpoint_that_calls_another_function_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return eval, ('1 + 1',)

    torch.save({'state_dict': {}, 'evil': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError, match='eval'):
        torch.load(tmp_path / 'evil.pth', weights_only=True)
