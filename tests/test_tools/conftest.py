import pytest


@pytest.fixture(autouse=True)
def restore(default_scope):
    """Tools that run in this process change MMEngine's global default scope."""
