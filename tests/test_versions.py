"""What `import uotod_mmdet` checks, and what it lets torch.load read."""

import collections
import pickle
import subprocess
import sys

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


@pytest.mark.parametrize('package', MODULES)
def test_missing_package_is_named_with_its_cure(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = complaint()
    assert f'uotod_mmdet cannot import {package}: ' in message
    assert_fixes(message, package)


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
