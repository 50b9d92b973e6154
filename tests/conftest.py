import gc
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

# Helpers that several test folders use live beside this file.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a worker of pytest-xdist run the whole of what shares things that take long to make.

    These are the files, and the tests of configs, which build each model once.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            configs = 'tests/test_configs/'
            return configs if nodeid.startswith(configs) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Start with the folders of long tests, so that no worker is left with them alone."""
    long = ('test_tools', 'test_package', 'test_ops', 'test_kernel_warehouse')
    items.sort(key=lambda item: item.path.parent.name not in long)


def pytest_collection_finish():
    """Spare the garbage collector what stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def fast_mmengine():
    """Leave out what MMEngine does again and again.

    For every file of MMPretrain or MMDetection that a config inherits, it looks for the package and
    parses the metadata of all its models; a run formats its config four times; and every data set
    makes the garbage collector look at everything.
    """
    # Not above: the process that starts pytest-xdist's workers reads this file first.
    from mmengine.config import config, utils
    from mmengine.dataset import base_dataset

    formatted = {}

    def format_once(text, format_code=config.FormatCode, **options):
        if text not in formatted:
            formatted[text] = format_code(text, **options)
        return formatted[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, 'load', cache(utils.load))
        patch.setattr(config, 'is_installed', cache(config.is_installed))
        patch.setattr(config, 'FormatCode', format_once)
        patch.setattr(base_dataset, 'gc', SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope='module', autouse=True)
def own_default_scope():
    """Let each file start without a default scope of MMEngine, whichever files ran before it."""
    from mmengine.registry import DefaultScope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultScope, '_instance_dict', OrderedDict())
        yield


@pytest.fixture(params=[2**24, 1], ids=['one block', 'blocks'])
def blocks(request, monkeypatch):
    """Kernels of all samples and rows at once, or of one sample and a few rows."""
    from mmkw.ops import blockwise

    monkeypatch.setitem(blockwise.BLOCK_BYTES, 'cpu', request.param)
    if request.param == 1:
        monkeypatch.setattr(blockwise, 'MIN_ROWS', 4)


@pytest.fixture
def default_scope():
    """Leave MMEngine's global default scope as it was; runs in this process change it."""
    from mmengine.registry import DefaultScope

    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        DefaultScope.get_instance(before.instance_name, scope_name=before.scope_name)
