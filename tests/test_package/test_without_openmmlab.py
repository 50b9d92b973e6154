"""The layers with PyTorch alone, in an environment without the packages of OpenMMLab."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tiny_runs import ROOT

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')


def link_packages(folder, without):
    for path in Path(sysconfig.get_path('purelib')).iterdir():
        is_hidden = path.name.split('-')[0].split('.')[0] in without
        if not is_hidden and path.suffix != '.pth' and path.name != '__pycache__':
            (folder / path.name).symlink_to(path)
    return folder


def run(packages, code, *folders):
    """Run code with the packages of a folder, but not with those of this Python."""
    path = os.pathsep.join(map(str, [*folders, ROOT, packages]))
    return subprocess.run(
        [sys.executable, '-S', '-c', code],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope='module')
def torch_alone(tmp_path_factory):
    return link_packages(tmp_path_factory.mktemp('torch_alone'), OPENMMLAB)


TRAINING = """
import importlib.util, sys, warnings
for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
    assert importlib.util.find_spec(name) is None
import torch
from torch import nn
import mmkw
import mmkw.methods, mmkw.networks, mmkw.ops

network = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 2),
)
mmkw.convert(network, mmkw.KernelWarehouse(max_attention=100), torch.randn(2, 3, 8, 8))
mmkw.set_temperature(network, 0.5)
network(torch.randn(2, 3, 8, 8)).sum().backward()
assert network.warehouses.stage1_dense.cells.grad.any()

messages = []
def collect(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        messages.append(str(error))
plain = nn.Conv2d(8, 8, 3)
layer, small = mmkw.KWConv2d(8, 8, 3), mmkw.KWConv2d(8, 8, 3, budget='1/2')
collect(lambda: small.load_state_dict(plain.state_dict()))
with warnings.catch_warnings(record=True) as caught:
    layer.load_state_dict(plain.state_dict())
messages.append(str(caught[0].message))
collect(lambda: layer(torch.zeros(1, 8, 4, 4)))
collect(lambda: mmkw.KWConv2d(8, 8, 3, attention=dict(norm_layer=dict(type='BN'))))
collect(lambda: mmkw.set_temperature(plain, 0))
collect(lambda: mmkw.KWConv2d(8, 8, 3, budget=2).load_state_dict(layer.state_dict()))
other = nn.Sequential(nn.Conv2d(3, 8, 3))
mmkw.convert(other, mmkw.KernelWarehouse(plan={'another': dict(layers=['0'])}))
collect(lambda: other.load_state_dict(network.state_dict(), strict=False))
assert len(messages) == 7, messages
print(*messages, sep='\\n')
assert not any(name.split('.')[0].startswith('mm') and name[:4] != 'mmkw' and name != 'mmap'
               for name in sys.modules)
"""


def test_plans_and_layers_with_pytorch_alone(torch_alone):
    done = run(torch_alone, TRAINING)
    assert done.returncode == 0, done.stderr
    for word in ('init_cfg', 'load_from', 'tools/', 'config', "type='", 'mmkw.checkpoints'):
        assert word not in done.stdout
    assert 'plain kernel, weight, where the model has a KernelWarehouse layer' in done.stdout


def test_what_needs_openmmlab_names_the_package(torch_alone):
    done = run(torch_alone, 'import mmkw.openmmlab.backbones')
    assert "ModuleNotFoundError: No module named 'mm" in done.stderr


def test_broken_openmmlab_shows_its_error(torch_alone, tmp_path):
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / '__init__.py').write_text("raise ImportError('libbroken.so')")
    done = run(torch_alone, 'import mmkw', tmp_path)
    assert 'ImportError: libbroken.so' in done.stderr and done.returncode == 1
