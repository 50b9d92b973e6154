"""How the lean route cuts its work, for all tests of layers."""

import pytest

from mmkw.kernel_warehouse import lean


@pytest.fixture(params=[2**24, 1], ids=['one block', 'blocks'])
def blocks(request, monkeypatch):
    """Kernels of all samples and rows at once, or of one sample and a few rows."""
    monkeypatch.setitem(lean._BLOCK_BYTES, 'cpu', request.param)
    if request.param == 1:
        monkeypatch.setattr(lean, '_MIN_ROWS', 4)
