import sys
from functools import cache
from pathlib import Path

import mmengine.config.config
import mmengine.config.utils
import pytest

from mmkw.sample_conv import blockwise

# Helpers that several test folders use live beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# For every file of MMPretrain or MMDetection that a config inherits, MMEngine looks for the package
# and parses the metadata of all its models anew: most of the time that reading configs takes.
mmengine.config.utils.load = cache(mmengine.config.utils.load)
mmengine.config.config.is_installed = cache(mmengine.config.config.is_installed)


@pytest.fixture(params=[2**24, 1], ids=['one block', 'blocks'])
def blocks(request, monkeypatch):
    """Kernels of all samples and rows at once, or of one sample and a few rows."""
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
