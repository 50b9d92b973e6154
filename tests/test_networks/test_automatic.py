"""Automatic planning against hand-made networks, brute force and the networks that it builds."""

import math
import time
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import ResNet
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from mmkw.methods.kernel_warehouse import KernelAttention, KWConv2d
from mmkw.networks import (
    NetworkPlan,
    WarehouseConfig,
    apply_plan,
    complete_plan,
    partition_network,
    plan_network,
    trace_layers,
)
from mmkw.openmmlab.backbones import resnet_plan


def conv(in_channels, out_channels, kernel_size=3, stride=1, groups=1):
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )


IMAGES = torch.zeros(2, 3, 32, 32)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def users(network):
    """The layers of each warehouse of a built network."""
    return {
        name: {
            layer
            for layer, module in network.named_modules()
            if isinstance(module, KWConv2d) and module.warehouse is warehouse
        }
        for name, warehouse in network.warehouses.items()
    }


# What is seen of the layers


class Odd(nn.Module):
    """Layers that are used in ways which forbid a warehouse, and one that is not."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.second_stem = conv(3, 16)
        self.turned = conv(3, 16)
        self.fine = conv(16, 16)
        self.twice = conv(16, 16)
        self.read = conv(16, 16)
        self.read_too = conv(16, 16)
        self.unused = conv(16, 16)
        self.excite = conv(16, 16, 1)
        self.pooled = nn.Linear(16, 16)
        self.windows = nn.Linear(16, 16)
        self.transposed = nn.ConvTranspose2d(16, 16, 1)
        self.normed = parametrizations.weight_norm(conv(16, 16))
        self.spectral = spectral_norm(conv(16, 16))
        self.tied = conv(16, 16)
        self.tied_too = conv(16, 16)
        self.tied_too.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.fine(self.stem(input=x) + self.turned(x.flip(-1)))
        y = self.twice(self.twice(y)) + self.second_stem(x)
        y = F.conv2d(y, self.read.weight, padding=1)
        y = self.read_too(y) * self.read_too.weight.mean()
        y = (
            y * self.excite(y.mean((2, 3), keepdim=True))
            + self.pooled(y.mean((2, 3)))[..., None, None]
        )
        y = y + self.windows(y.reshape(-1, 4, 16)).reshape(y.shape)
        y = self.tied_too(self.tied(self.spectral(self.normed(self.transposed(y)))))
        tokens = y.flatten(2).transpose(1, 2)
        return self.drop(self.attention(tokens, tokens, tokens)[0])


REASONS = {
    'stem': "sees the network's own input",
    'second_stem': "sees the network's own input",
    'turned': None,
    'fine': None,
    'twice': None,
    'read': 'its weight is read outside its forward',
    'read_too': 'its weight is read outside its forward',
    'unused': 'its forward is never called',
    'excite': 'sees a single position',
    'pooled': 'sees a single position',
    'windows': 'its input does not have the samples first',
    'transposed': 'a ConvTranspose2d is no plain convolution or linear layer',
    'normed': 'its weight is computed from others',
    'spectral': 'its weight is computed from others',
    'tied': 'another layer has the same weight',
    'tied_too': 'another layer has the same weight',
    'attention.out_proj': 'its weight is read outside its forward',
}


def test_layers_that_cannot_have_a_warehouse_are_named_with_the_reason():
    network = Odd()
    plan = plan_network(network, torch.randn(2, 3, 8, 8), max_attention=100)
    assert plan.plain == {name: reason for name, reason in REASONS.items() if reason}
    assert set(plan.layers) == {'turned', 'fine', 'twice'}
    # And it runs with what is left.
    apply_plan(network, plan).eval()
    assert network(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_trace_sees_order_calls_and_shapes():
    traces = trace_layers(Odd(), torch.randn(2, 3, 8, 8))
    assert list(traces)[:5] == ['stem', 'turned', 'fine', 'twice', 'second_stem']
    assert {name: trace.calls for name, trace in traces.items() if trace.calls != 1} == dict(
        twice=2, read=0, unused=0, **{'attention.out_proj': 0}
    )
    assert traces['pooled'].input_shape == (2, 16)
    assert traces['windows'].output_shape == (32, 4, 16)


def state(network):
    modes = [module.training for module in network.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    return modes, hooks, torch.get_rng_state().tolist()


@pytest.mark.parametrize('size', [8, 7])
def test_trace_leaves_no_trace(size):
    network = Odd()
    network.fine.eval()
    before = state(network)
    values = {name: value.clone() for name, value in network.state_dict().items()}
    if size == 8:
        trace_layers(network, torch.zeros(2, 3, size, size))
    else:
        with pytest.raises(ValueError, match=r'Odd cannot run on inputs of shape \(2, 3, 7, 7\)'):
            trace_layers(network, torch.zeros(2, 3, size, size))
    assert state(network) == before
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)


class SpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(16, 16)

    def forward(self, x):
        return x * self.conv(x).sigmoid()


class Tokens(nn.Module):
    """A stem, an attention over positions, and two blocks of which the second has a class token."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16, 4, 4)
        self.spatial = SpatialAttention()
        self.msa = SelfAttention()
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16))
        self.mlp_with_class = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16))

    def forward(self, x):
        x = self.spatial(self.stem(x)).flatten(2).transpose(1, 2)
        x = self.mlp(self.msa(x))
        return self.mlp_with_class(torch.cat([x[:, :1], x], dim=1))


def test_self_attention_is_plain_and_a_class_token_changes_no_stage():
    plan = plan_network(Tokens(), IMAGES, max_attention=100)
    assert {name: config.layers for name, config in plan.items()} == dict(
        stage1_dense=['spatial.conv'],
        stage1_linear=['mlp.0', 'mlp.1', 'mlp_with_class.0', 'mlp_with_class.1'],
    )
    reason = 'in a self-attention (SelfAttention)'
    assert plan.plain == {
        'stem': "sees the network's own input",
        'msa.qkv': reason,
        'msa.out': reason,
    }


# Who shares


@pytest.mark.parametrize('depth', [18, 34])
def test_resnet_is_planned_as_in_the_paper(depth):
    """Tables 14 and 15, by way of the plan that KWResNet has from them."""
    network = ResNet(depth)
    plan = plan_network(network, torch.zeros(2, 3, 64, 64))
    expected = partition_network(network, resnet_plan(network))
    assert list(plan.partitions.values()) == list(expected.values())
    assert plan.plain == {'conv1': "sees the network's own input"}
    if depth == 18:
        assert [part.num_mixtures for part in plan.partitions.values()] == [56, 47, 47, 27]
        assert [part.num_cells for part in plan.partitions.values()] == [56, 47, 47, 27]


def test_planning_on_the_meta_device_computes_nothing():
    network = ResNet(18)
    plan = plan_network(network, torch.zeros(2, 3, 64, 64))
    on_meta = plan_network(network.to('meta'), torch.zeros(2, 3, 64, 64, device='meta'))
    assert str(on_meta) == str(plan) and on_meta.plain == plan.plain


def test_kinds_and_dimensions_do_not_share():
    network = nn.Sequential(
        conv(3, 16),
        conv(16, 16),
        conv(16, 16, groups=16),
        conv(16, 16, groups=4),
        nn.Flatten(2),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.Linear(1024, 1024),
    )
    plan = plan_network(network, IMAGES, max_attention=100)
    assert {name: config.layers for name, config in plan.items()} == dict(
        stage1_dense=['1'],
        stage1_depthwise=['2'],
        stage1_grouped=['3'],
        stage1_dense1d=['5'],
        stage2_linear=['6'],
    )


def test_entry_goes_to_the_previous_stage_only_where_that_gives_larger_cells():
    # 24 of the previous stage would have to shrink for 32; 48 would not.
    for width, moves in ((32, False), (48, True)):
        network = nn.Sequential(
            conv(3, 24), conv(24, 24), conv(24, width, stride=2), conv(width, width)
        )
        plan = plan_network(network, IMAGES, max_attention=100)
        layers = [config.layers for config in plan.values()]
        assert layers == ([['1', '2'], ['3']] if moves else [['1'], ['2', '3']])
        assert len(plan.notes) == moves


def test_kernel_sizes_do_not_share_without_spatial_partition():
    network = nn.Sequential(conv(3, 16), conv(16, 16), conv(16, 16, 1), conv(16, 16))
    plan = plan_network(network, IMAGES, spatial_partition=False, max_attention=100)
    assert {name: config.layers for name, config in plan.items()} == dict(
        stage1_dense3x3=['1', '3'], stage1_dense1x1=['2']
    )
    assert plan.partitions['stage1_dense3x3'].cell_shape == (16, 16, 3, 3)


def test_layers_and_exclude():
    network = nn.Sequential(*[conv(3, 16)], *[conv(16, 16) for _ in range(4)])
    plan = plan_network(network, IMAGES, layers=['[123]'], exclude=['2'], max_attention=100)
    assert plan.layers == ['1', '3']
    assert plan.plain == {
        '0': 'not among the layers asked for',
        '2': 'excluded',
        '4': 'not among the layers asked for',
    }


# Budgets


def test_depthwise_keeps_a_budget_of_1():
    network = nn.Sequential(
        conv(3, 16), conv(16, 16, groups=16), conv(16, 32, 1), conv(32, 32, groups=32)
    )
    plan = plan_network(network, IMAGES, budget='1/2', max_attention=100)
    depthwise, dense = plan.partitions['stage1_depthwise'], plan.partitions['stage1_dense']
    assert depthwise.num_cells == depthwise.num_mixtures
    assert dense.num_cells * 2 == dense.num_mixtures
    assert dense.cell_shape == (16, 8, 1, 1)
    assert plan.notes == [
        'stage1_depthwise has a budget of 1, as depthwise convolutions do in the paper.'
    ]
    plan = plan_network(network, IMAGES, budget=4, max_attention=100)
    assert {part.num_cells / part.num_mixtures for part in plan.partitions.values()} == {4}


def test_budget_that_leaves_no_whole_cells_is_rounded_up():
    # 3 x 3 x 1 mixtures of 27 x 27 channels: half of 27 is none of their divisors, 9 is one.
    network = nn.Sequential(conv(3, 27), conv(27, 27))
    plan = plan_network(network, IMAGES, budget='1/2', max_attention=100)
    (part,) = plan.partitions.values()
    assert part.cell_shape == (9, 9, 1, 1)
    assert (part.num_mixtures, part.num_cells) == (81, 41)
    assert plan.notes == [
        'stage1_dense has 41 cells: a budget of 1/2 is no whole number of them for 81 mixtures.'
    ]


# What attentions cost


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(reduction=1 / 4, norm_layer='LayerNorm'),
        dict(norm_layer=lambda width: nn.GroupNorm(2, width)),
        dict(norm_layer='Identity', basis_ratio=1 / 16),
        dict(od_heads=True),
        dict(scope='mixture'),
    ],
)
def test_attentions_are_counted_as_built(options):
    network = nn.Sequential(conv(3, 64), conv(64, 64), conv(64, 64), conv(64, 32))
    plan = plan_network(network, IMAGES, budget=2, attention=options, max_attention=100)
    apply_plan(network, plan)
    built = NetworkPlan.of_built(network)
    assert plan.attention == built.attention
    assert plan.parameters == built.parameters == parameters(network)


@pytest.mark.parametrize(
    ('options', 'count'),
    [(dict(), 2_586), (dict(od_heads=True), 4_915), (dict(scope='mixture'), 1_362)],
)
def test_limit_counts_all_parts_of_attentions(options, count):
    """A 3x3 layer of 64 channels has a warehouse where its attention just fits."""
    network = nn.Sequential(conv(3, 64, 1), conv(64, 64, 3))
    # Half of the limit is for attentions that no sharing can save.
    limit = Fraction(2 * count, parameters(network))
    plan = plan_network(network, IMAGES, attention=options, max_attention=limit)
    assert f'{count:,}' in str(plan) and sum(plan.attention.values()) == count
    limit = Fraction(2 * count - 2, parameters(network))
    with pytest.raises(ValueError, match='raise max_attention'):
        plan_network(network, IMAGES, attention=options, max_attention=limit)


def odd_chain(*widths):
    layers = [conv(3, widths[0], 1)]
    layers += [conv(i, o, 1) for i, o in zip(widths, widths[1:])]
    return nn.Sequential(*layers)


def test_first_split_is_the_best_of_all():
    """Against each cut of the chain, and each kernel shape apart, priced as plans of their own."""
    network = odd_chain(96, 64, 96, 64, 72, 80, 72, 80)
    whole = plan_network(network, IMAGES, max_attention=1000)
    assert len(whole) == 1
    (layers,) = [config.layers for config in whole.values()]
    shape = {name: tuple(network.get_submodule(name).weight.shape) for name in layers}
    halves = [(layers[:cut], layers[cut:]) for cut in range(1, len(layers))]
    halves += [
        (
            [name for name in layers if shape[name] == one],
            [name for name in layers if shape[name] != one],
        )
        for one in set(shape.values())
    ]
    costs = {}
    for first, second in halves:
        plan = {'first': WarehouseConfig(first), 'second': WarehouseConfig(second)}
        costs[frozenset(first), frozenset(second)] = sum(
            NetworkPlan(network, plan).attention.values()
        )
    best = min(costs, key=costs.get)
    # Just too little for one warehouse.
    limit = (sum(whole.attention.values()) - 1) / parameters(network)
    split = plan_network(network, IMAGES, max_attention=limit)
    assert {frozenset(config.layers) for config in split.values()} == set(best)
    assert sum(split.attention.values()) == costs[best]
    assert split.notes == [
        f'stage1_dense is split into 2: its attentions would have '
        f'{sum(whole.attention.values()):,} parameters, and so have {costs[best]:,}.'
    ]
    assert list(split) == ['stage1_dense_1', 'stage1_dense_2']


@pytest.mark.parametrize('budget', ['1/2', 1, 4])
@pytest.mark.parametrize('max_attention', [1 / 16, 1 / 4])
def test_attentions_of_the_built_network_keep_to_the_limit(budget, max_attention):
    network = odd_chain(*range(128, 256, 8))
    plain_parameters = parameters(network)
    plan = plan_network(network, IMAGES, budget=budget, max_attention=max_attention)
    apply_plan(network, plan)
    attentions = [m for m in network.modules() if isinstance(m, KernelAttention)]
    total = sum(parameters(attention) for attention in attentions)
    assert 0 < total <= max_attention * plain_parameters
    assert total == sum(plan.attention.values())
    assert users(network) == {name: set(config.layers) for name, config in plan.items()}


def test_layers_whose_attention_costs_most_for_the_kernel_stay_plain():
    # Of 64 x 16 + 17 x 9 x 10 + ... parameters for 9 x 64, or 64 x 16 + 17 x 2 + ... for 64 x 64.
    network = nn.Sequential(
        conv(3, 64), *[layer for _ in range(3) for layer in (conv(64, 64, groups=64), conv(64, 64))]
    )
    plan = plan_network(network, IMAGES, max_attention=1 / 6)
    assert plan.layers == ['2', '4', '6']
    assert plan.plain['1'] == (
        'its attention costs too much (2,586 parameters alone, for a kernel of 576)'
    )


def test_planning_a_deep_network_of_odd_widths_takes_no_time():
    network = odd_chain(*(64 + 2 * (i % 97) for i in range(200)))
    start = time.process_time()
    plan_network(network, torch.zeros(2, 3, 2, 2))
    assert time.process_time() - start < 5


# The result


def test_numbers_are_those_of_the_built_network():
    network = ResNet(18)
    plan = plan_network(network, torch.zeros(2, 3, 64, 64), budget='1/2')
    assert plan.plain_parameters == parameters(network)
    apply_plan(network, plan)
    assert plan.parameters == parameters(network)
    assert plan.cells == sum(w.cells.numel() for w in network.warehouses.values())
    built = NetworkPlan.of_built(network)
    for name in ('partitions', 'attention', 'parameters', 'plain_parameters', 'cells', 'layers'):
        assert getattr(built, name) == getattr(plan, name), name
    assert str(built).splitlines()[1:6] == str(plan).splitlines()[1:6]


def test_printed_table():
    plan = plan_network(Tokens(), IMAGES, max_attention=100)
    assert (
        str(plan)
        == """\
KernelWarehouse plan of Tokens: 5 of 8 convolutions and linear layers, in 2 warehouses
warehouse      layers  first .. last              b   n       cell   m  in cells  attention
stage1_dense        1  spatial.conv               1   9  16x16x1x1   9     2,304      1,818
stage1_linear       4  mlp.0 .. mlp_with_class.1  1  16    16x16x1  16     4,096      7,312
Plain layers:
  sees the network's own input: stem
  in a self-attention: msa.qkv, msa.out
Parameters: 8,416 plain, 17,546 with warehouses (kernels 6,400 -> cells 6,400 + attentions 9,130, \
108.5% of the plain network)"""
    )


def test_plan_of_a_network_without_warehouses():
    with pytest.raises(ValueError, match='Sequential has no warehouses'):
        NetworkPlan.of_built(odd_chain(8, 8))


# Plans of one's own


def test_complete_plan():
    network = odd_chain(32, 32, 32, 64)
    plan = complete_plan(
        network,
        IMAGES,
        {'a': dict(layers=['[12]'], budget='1/2'), 'b': WarehouseConfig(['3'], cell_ratio=1 / 4)},
        attention=dict(reduction=1 / 8),
    )
    assert plan['a'] == WarehouseConfig(['[12]'], budget='1/2', attention=dict(reduction=1 / 8))
    assert plan.partitions['a'].cell_shape == (16, 16, 1, 1), 'half of 32 both ways below budget 1'
    assert plan['b'] == WarehouseConfig(['3'], cell_ratio=1 / 4)
    assert plan.plain == {'0': 'not in the plan'}
    assert plan.partitions['b'].cell_shape == (16, 8, 1, 1)
    apply_plan(network, complete_plan(network, IMAGES, {'a': dict(layers=['1'])}, budget=4))
    assert len(network.warehouses['a'].cells) == 4


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (dict(layers=['unused']), r"of Odd that cannot .*: 'unused' \(its forward is never called"),
        (dict(layers=['fine', 'read']), r"'read' \(its weight is read outside its forward\)"),
        (dict(layers=['read_too']), "'read_too'.*leave them out of the plan"),
        (dict(layers=['fine'], budgets=2), "'a' has no argument 'budgets'; did you mean 'budget'"),
        (dict(budget=2), "warehouse 'a' needs the argument layers"),
    ],
)
def test_bad_plans_are_named(plan, message):
    with pytest.raises(ValueError, match=message):
        complete_plan(Odd(), torch.zeros(2, 3, 8, 8), {'a': plan})


def test_empty_plan_is_refused():
    with pytest.raises(ValueError, match='the plan has no warehouses'):
        complete_plan(Odd(), torch.zeros(2, 3, 8, 8), {})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(layers=['1.conv']), "'1.conv' matches no convolution or linear layer of Sequential"),
        (dict(exclude=['5']), "'5' matches no convolution or linear layer of Sequential"),
        (dict(layers=['1', '[12]']), "'1' is matched by '1' and again by"),
        (
            dict(exclude=['[123]']),
            "no layer of Sequential can have a warehouse: sees the network's own input: 0; "
            r'excluded: \* \(3\)',
        ),
        (dict(max_attention=1e-3), 'attention of each layer .* raise max_attention, or'),
        (dict(max_attention='much'), 'max_attention must be a positive number'),
        (dict(inputs=torch.zeros(1, 3, 8, 8)), 'needs at least 2 samples'),
    ],
)  # fmt: skip
def test_bad_options_are_named(options, message):
    network = odd_chain(64, 64, 64, 64)
    with pytest.raises(ValueError, match=message):
        plan_network(network, **{'inputs': IMAGES, **options})
    assert math.isfinite(parameters(network)) and not hasattr(network, 'warehouses')
