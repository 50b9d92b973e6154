import gc
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path

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
def quick_configs():
    """Leave out what MMEngine does again and again.

    For every file of MMPretrain or MMDetection that a config inherits, it parses the metadata of
    all the package's models; and a run formats its config four times.
    """
    # Not above: the process that starts pytest-xdist's workers reads this file first.
    from mmengine.config import Config
    from mmengine.fileio import YamlHandler, register_handler

    parse = cache(YamlHandler().load_from_fileobj)
    format_config = Config.pretty_text.fget
    formatted = {}

    @register_handler(['yml', 'yaml'])
    class ParsingOnce(YamlHandler):
        def load_from_fileobj(self, file):
            return parse(file.read())

    def format_once(config):
        content = repr(config)
        if content not in formatted:
            formatted[content] = format_config(config)
        return formatted[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'pretty_text', property(format_once))
        yield


@pytest.fixture(scope='module', autouse=True)
def no_default_scope():
    """Let each file start without a default scope of MMEngine, whichever files ran before it."""
    from mmengine.registry import DefaultScope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultScope, '_instance_dict', OrderedDict())
        yield


@pytest.fixture(autouse=True)
def own_runs(monkeypatch):
    """Let no run of a test reach into the next test.

    A run sets the default scope. Its logger, message hub and visualizer are named by config and
    second, so that a run which starts within the same second would get those of the test before,
    which write to that test's stdout and work dir.
    """
    from mmengine.registry import DefaultScope
    from mmengine.utils import ManagerMixin

    named = [ManagerMixin]
    for manager in named:
        named += manager.__subclasses__()
        kept = manager._instance_dict.copy() if manager is DefaultScope else OrderedDict()
        monkeypatch.setattr(manager, '_instance_dict', kept)


@pytest.fixture(params=[2**24, 1], ids=['one block', 'blocks'])
def blocks(request, monkeypatch):
    """Kernels of all samples and rows at once, or of one sample and a few rows."""
    from mmkw.ops import convolution

    monkeypatch.setitem(convolution.BLOCK_BYTES, 'cpu', request.param)
    if request.param == 1:
        monkeypatch.setattr(convolution, 'MIN_ROWS', 4)
