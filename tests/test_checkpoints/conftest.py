import pytest
import torch
from golden import load_golden, make_released_checkpoint


@pytest.fixture(scope='session')
def released_file(tmp_path_factory):
    """Path of the released file of a golden file's name."""
    folder = tmp_path_factory.mktemp('released')

    def path(name='kw_resnet18_1x'):
        if not (folder / name).exists():
            torch.save(make_released_checkpoint(load_golden(name)), folder / name)
        return folder / name

    return path
