import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def default_scope():
    """Leave MMEngine's global default scope as it was; runs in this process change it."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        DefaultScope.get_instance(before.instance_name, scope_name=before.scope_name)
