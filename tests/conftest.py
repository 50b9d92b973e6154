import sys
from pathlib import Path

import pytest

from mmkw.sample_conv import blockwise

# Helpers that several test folders use live beside this file.
sys.path.insert(0, str(Path(__file__).parent))


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
