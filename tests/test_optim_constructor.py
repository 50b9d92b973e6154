"""Weight decay by kind of parameter, of plain networks and of the same with dynamic layers."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmkw  # noqa: F401
from mmkw.methods import ODConv2d
from mmkw.networks import WarehouseConfig, apply_plan


@pytest.fixture
def network():
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1),
        ODConv2d(8, 8, 3, groups=8),
    )
    plan = {
        'depthwise': WarehouseConfig(['[01]'], attention=dict(basis_ratio=1 / 2)),
        'pointwise': WarehouseConfig(['[23]']),
    }
    apply_plan(network, plan)
    return network


def options_of(network, **paramwise):
    config = dict(
        constructor='KWOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=1.0, weight_decay=1.0),
        paramwise_cfg=paramwise,
    )
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = build_optim_wrapper(network, config).optimizer.param_groups
    return {names[group['params'][0]]: (group['lr'], group['weight_decay']) for group in groups}


def test_every_bias(network):
    for name, (rate, decay) in options_of(network, bias_decay_mult=0, bias_lr_mult=2).items():
        is_norm = '.norm.' in name
        assert decay == (0 if name.endswith('bias') else 1), name
        assert rate == (2 if name.endswith('bias') and not is_norm else 1), name


def test_depthwise_kernels(network):
    found = options_of(network, dwconv_decay_mult=0)
    undecayed = {name for name, (_, decay) in found.items() if decay == 0}
    assert undecayed == {'warehouses.depthwise.cells', '4.weight'}


def test_custom_keys_come_first(network):
    custom = {'depthwise': dict(decay_mult=0.5), 'basis_bias': dict(decay_mult=0.25)}
    found = options_of(network, dwconv_decay_mult=0, bias_decay_mult=0, custom_keys=custom)
    assert found['warehouses.depthwise.cells'][1] == 0.5
    assert found['0.attention.basis_bias'][1] == 0.25
