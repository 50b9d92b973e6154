"""Weight decay by kind of parameter, of plain networks and of the same with dynamic layers."""

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
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


def layer_wise_rates(constructor, backbone):
    """The learning rate of each parameter of a detector's backbone, by MMDetection's rules."""
    model = nn.Module()
    model.backbone = MODELS.build(backbone)
    config = dict(
        constructor=constructor,
        optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.5, num_layers=6),
    )
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    rates = {p: group['lr'] for group in groups for p in group['params']}
    return {name: rates[p] for name, p in model.backbone.named_parameters()}


CONVNEXT = dict(arch='tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
# The first layer that uses each.
KW_CONVNEXT = {
    'stem': 'downsample_layers.0.0',
    'downsample2': 'downsample_layers.2.1',
    'stage1_depthwise': 'stages.0.0.depthwise_conv',
    'stage3_blocks4to6_pointwise': 'stages.2.3.pointwise_conv1',
    'stage4_pointwise': 'stages.3.0.pointwise_conv1',
}
ANY_CONVNEXT = {f'stage{s + 1}_linear': f'stages.{s}.0.pointwise_conv1' for s in range(4)}


@pytest.mark.parametrize(
    ('backbone', 'first_users'),
    [
        (dict(type='KWConvNeXt', **CONVNEXT), KW_CONVNEXT),
        (
            dict(
                type='KWBackbone',
                backbone=dict(type='mmpretrain.ConvNeXt', **CONVNEXT),
                input_shape=(3, 64, 64),
            ),
            ANY_CONVNEXT,
        ),
    ],
    ids=lambda value: value.get('type', ''),
)
def test_layer_wise_rates_of_mmdetection(backbone, first_users):
    """Attentions have those of their layer; cells the full one, or that of their first layer."""
    plain = layer_wise_rates(
        'mmdet.LearningRateDecayOptimizerConstructor', dict(type='mmpretrain.ConvNeXt', **CONVNEXT)
    )
    by_name = layer_wise_rates('mmdet.LearningRateDecayOptimizerConstructor', backbone)
    by_layer = layer_wise_rates('KWLearningRateDecayOptimizerConstructor', backbone)
    assert len(set(plain.values())) == 8
    cells = {name for name in by_name if name.endswith('.cells')}
    assert {by_name[name] for name in cells} == {1.0}
    for name in by_layer.keys() - cells:
        layer = name.partition('.attention.')[0]
        expected = plain[name if name in plain else f'{layer}.weight']
        assert by_layer[name] == by_name[name] == expected, name
    for warehouse, layer in first_users.items():
        assert by_layer[f'warehouses.{warehouse}.cells'] == plain[f'{layer}.weight']
