"""KWConvNeXt against the paper's Table 14, exact parameter counts and the plain network."""

import pytest
import torch
from kernels import trainable
from mmpretrain.models.backbones import ConvNeXt
from torch import nn

from mmkw.networks import partition_network
from mmkw.openmmlab.backbones import KWConvNeXt, convnext_plan

# Table 14: m and n of the stem, the downsampling layers, then depthwise and pointwise in turns.
FIRST = (16, 4, 4, 4)
TABLE_14 = {
    1: (FIRST + (147, 24) * 6,) * 2,
    3 / 4: (FIRST + (147, 24) * 4 + (147, 96) * 2, FIRST + (147, 24) * 4 + (147, 48) * 2),
}
RELEASED = dict(blocks_per_warehouse=None, attention=dict(reduction=1 / 16))
SMALL = dict(arch=dict(depths=[1, 1, 4, 1], channels=[16, 32, 64, 128]))


def small(**kwargs):
    """A narrow KWConvNeXt for tests of behaviour; layer scale as large as to matter."""
    return KWConvNeXt(**SMALL, **{'layer_scale_init_value': 1.0, **kwargs})


@pytest.mark.parametrize('budget', TABLE_14)
def test_table_14(budget):
    network = KWConvNeXt(budget=None)
    partitions = partition_network(network, convnext_plan(network, budget)).values()
    m, n = TABLE_14[budget]
    assert tuple(partition.num_mixtures for partition in partitions) == m
    assert tuple(partition.num_cells for partition in partitions) == n


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [(dict(), 32_992_964), (dict(budget=3 / 4), 24_531_380), (RELEASED, 39_370_674)],
    ids=['1x', '3d4x', 'released'],
)
def test_parameter_counts(arguments, expected):
    backbone = KWConvNeXt(**arguments)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count + (768 + 1) * 1000 == expected


def test_plan_covers_every_convolution_once():
    """Blocks of unequal number, other budgets; each layer is in the plan exactly once."""
    network = KWConvNeXt(**SMALL, budget=None)
    for size, budget in ((1, 1), (3, 2), (None, 1), (2, 1 / 2)):
        partitions = partition_network(network, convnext_plan(network, budget, size))
        planned = [name for partition in partitions.values() for name in partition.kernels]
        kinds = (nn.Conv2d, nn.Linear)
        layers = [name for name, m in network.named_modules() if isinstance(m, kinds)]
        assert sorted(planned) == sorted(layers)
    assert 'stage3_blocks3to4_pointwise' in partitions
    assert partitions['stage2_depthwise'].num_cells == partitions['stage2_depthwise'].num_mixtures
    half = partitions['stage2_pointwise']
    assert half.num_cells * 2 == half.num_mixtures == 32


def test_budget_none_is_the_plain_network():
    kw, plain = KWConvNeXt(**SMALL, budget=None), ConvNeXt(**SMALL)
    assert list(kw.state_dict()) == list(plain.state_dict())


def test_attentions_have_layer_norms_of_their_own_eps():
    block = small().stages[0][0]
    assert isinstance(block.depthwise_conv.attention.norm, nn.LayerNorm)
    assert (block.depthwise_conv.attention.norm.eps, block.norm.eps) == (1e-5, 1e-6)
    assert block.depthwise_conv.attention.fc1.bias is not None


def test_every_parameter_trains_on_a_single_image():
    backbone = small(out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
    backbone.init_weights()
    outputs = backbone.train()(torch.randn(1, 3, 64, 64))
    sum(y.square().sum() for y in outputs).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_frozen_stages():
    backbone = small(frozen_stages=3, blocks_per_warehouse=2)
    assert backbone.train() is backbone
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    prefixes = ('stages.3.', 'downsample_layers.3.', 'norm3.')
    warehouses = ('warehouses.stage4_', 'warehouses.downsample3.')
    assert all(name.startswith(prefixes + warehouses) for name in trained)
    assert not any(name.startswith(prefixes + warehouses) for name in frozen)
    assert 'warehouses.stage3_blocks3to4_pointwise.cells' in frozen
    trained = small(frozen_stages=4, freeze_idle_warehouses=False).train()
    assert trainable(trained.warehouses) == {True} and trainable(trained.stages) == {False}


def test_drop_path_grows_from_0_to_the_rate():
    blocks = [block for stage in small(drop_path_rate=0.3).stages for block in stage]
    rates = [getattr(block.drop_path, 'drop_prob', 0) for block in blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])


def test_layer_scales_are_no_vectors():
    """Which is how recipes find what not to decay; the plain network's are left out."""
    assert small().stages[1][0].gamma.shape == (1, 32, 1, 1)
    assert small(budget=None).stages[1][0].gamma.shape == (32,)
    assert small(layer_scale_init_value=0.0).stages[1][0].gamma is None
    frozen = small(frozen_stages=1)
    assert not frozen.stages[0][0].gamma.requires_grad
    assert frozen.stages[1][0].gamma.requires_grad


def test_layer_wise_learning_rates():
    backbone = KWConvNeXt()
    for warehouse, layer in {
        'stem': 'downsample_layers.0.0',
        'downsample2': 'downsample_layers.2.1',
        'stage1_depthwise': 'stages.0.0.depthwise_conv',
        'stage3_blocks4to6_pointwise': 'stages.2.3.pointwise_conv1',
        'stage4_pointwise': 'stages.3.0.pointwise_conv1',
    }.items():
        assert backbone.get_layer_depth(
            f'backbone.warehouses.{warehouse}.cells', 'backbone.'
        ) == backbone.get_layer_depth(f'backbone.{layer}.bias', 'backbone.')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(budget=0), 'budget must be a positive number .* got 0'),
        (dict(budget=1 / 7), r"warehouse 'stage1_pointwise': budget 1/7 leaves no whole"),
        (dict(blocks_per_warehouse=0), 'blocks_per_warehouse must be a positive .* got 0'),
        (dict(blocks_per_warehouse=2.5), 'blocks_per_warehouse must be a positive .* got 2.5'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
