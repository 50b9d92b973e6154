"""The options of the paper's ablations: each against a loop or a small case by hand."""

import pytest
import torch
from by_hand import ATTENTION_FUNCTIONS, convolve, warehouse_kernels
from torch import nn

from mmkw.methods import DYConv2d, ODConv2d, set_temperature
from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear, fold_attentions, partition_kernels
from mmkw.openmmlab.backbones import KWResNet


def make(kind=KWConv2d, *args, temperature=0.3, **options):
    torch.manual_seed(0)
    layer = kind(*(args or (8, 8, 3)), **options).double().eval()
    for parameter in layer.attention.parameters():
        nn.init.normal_(parameter)
    set_temperature(layer, temperature)
    return layer


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Tables 6, 8 and 9: attention functions, scopes and allocations


@pytest.mark.parametrize('temperature', [0.3, 1])
@pytest.mark.parametrize(
    'options',
    [
        *(dict(attention=dict(function=function)) for function in ATTENTION_FUNCTIONS),
        dict(budget=2, attention=dict(scope='mixture')),
        dict(allocation='all_to_one'),
        dict(budget=2, allocation='several_to_one'),
        dict(kernel_size=(1, 2), budget=1 / 2, allocation='one_to_two'),
        dict(allocation='none'),
    ],
    ids=str,
)
def test_kernels_equal_the_equations(options, temperature):
    layer = make(KWConv2d, 8, 8, **{'kernel_size': 3, **options}, temperature=temperature)
    pooled = images(2, 8)
    torch.testing.assert_close(layer.sample_kernels(pooled), warehouse_kernels(layer, pooled))


@pytest.mark.parametrize('function', ['softmax', 'caf'])
def test_one_cell_per_kernel_is_dy_conv(function):
    """Section 3.5: with cells of the whole kernel that no other layer uses, KernelWarehouse is
    DY-Conv with the same attention function."""
    kw = make(budget=4, spatial_partition=False, attention=dict(function=function), temperature=0)
    dy = make(DYConv2d, 8, 8, 3, function=function, temperature={'softmax': 1, 'caf': 0}[function])
    assert kw.warehouse.cells.shape == dy.weight.shape
    dy.attention.fc1 = nn.Sequential(kw.attention.fc1, kw.attention.norm)
    dy.attention.fc2.weight, dy.attention.fc2.bias = (
        nn.Parameter(kw.attention.fc2.weight[:4].detach()),
        nn.Parameter(kw.attention.fc2.bias[:4].detach()),
    )
    dy.weight, dy.bias = nn.Parameter(kw.warehouse.cells.detach()), kw.bias
    # The zero cell, which DY-Conv lacks, gets no attention.
    kw.attention.fc2.weight.data[4:] = 0
    kw.attention.fc2.bias.data[4:] = -1e9 if function == 'softmax' else 0
    x = images(3, 8, 5, 6)
    torch.testing.assert_close(kw(x), dy(x))


# Tables 9 and 13


def beta(shapes, **options):
    parts = partition_kernels(shapes, cell_ratio=1, **options).kernels.values()
    return [sorted(part.initial_pairs) for part in parts]


TWO = {'a': (2, 2, 2), 'b': (2, 2, 2)}  # two mixtures each


def test_allocations_by_hand():
    assert beta(TWO) == [[(0, 0), (1, 1)], [(0, 2), (1, 3)]]
    everything = [(i, j) for i in range(2) for j in range(4)]
    assert beta(TWO, allocation='all_to_one') == [everything, everything]
    assert beta(TWO, budget=2, allocation='several_to_one') == [
        [(0, 0), (0, 1), (1, 2), (1, 3)],
        [(0, 4), (0, 5), (1, 6), (1, 7)],
    ]
    assert beta(TWO, budget=1 / 2, allocation='one_to_two') == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]
    assert beta(TWO, allocation='none') == [[], []]


def test_without_allocation_the_temperature_has_no_effect():
    layer = make(KWLinear, 8, 8, allocation='none', temperature=1)
    x = images(3, 8)
    y = layer(x)
    set_temperature(layer, 0)
    assert torch.equal(layer(x), y) and y.std() > 0


# Tables 10 and 17


@pytest.mark.parametrize('kind', [DYConv2d, ODConv2d])
def test_caf_of_kernels(kind):
    layer = make(kind, 8, 8, 3, function='caf')
    pooled = images(2, 8)
    attention = layer.attention
    if kind is DYConv2d:
        logits = attention.fc2(attention.fc1(pooled).clamp(min=0))
    else:
        hidden = attention.norm(attention.fc(pooled)).clamp(min=0)
        logits = attention.kernel_fc(hidden)
        factors = attention(pooled)
        torch.testing.assert_close(factors.channel, attention.channel_fc(hidden).sigmoid())
    first = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    alpha = torch.stack([0.7 * ATTENTION_FUNCTIONS['caf'](z) + 0.3 * first for z in logits])
    torch.testing.assert_close(layer.mix(pooled).coefficients[:, 0], alpha)
    set_temperature(layer, 1)
    assert torch.equal(layer.mix(pooled).coefficients[:, 0], first.expand(2, 4))


@pytest.mark.parametrize('options', [dict(kernel_size=3), dict(kernel_size=1), dict(groups=8)])
def test_heads_of_od_conv(options):
    layer = make(KWConv2d, 8, 8, **{'kernel_size': 3, **options}, attention=dict(od_heads=True))
    x = images(3, 8, 5, 6)
    pooled = x.mean((2, 3))
    attention = layer.attention
    hidden = attention.hidden(pooled)
    plain = KWConv2d(8, 8, **{'kernel_size': 3, **options}).double().eval()
    plain.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k in plain.state_dict()}, strict=True
    )
    kernels = plain.sample_kernels(pooled)
    channel = attention.channel_fc(hidden).sigmoid()
    filters = attention.filter_fc(hidden).sigmoid()
    if attention.spatial_fc is None:
        assert layer.kernel_size == (1, 1)
    else:
        kernels = kernels * attention.spatial_fc(hidden).sigmoid().view(3, 1, 1, 3, 3)
    geometry, bias = dict(groups=layer.groups), layer.bias.view(-1, 1, 1)
    expected = convolve(x * channel[..., None, None], kernels, geometry) * filters[..., None, None]
    torch.testing.assert_close(layer(x), expected + bias)
    torch.testing.assert_close(layer(x), convolve(x, layer.kernels(x), geometry) + bias)


# Combinations that have no meaning


@pytest.mark.parametrize(
    ('make_it', 'message'),
    [
        (lambda: KWConv2d(8, 8, 1, budget=0.3), 'budget 3/10 leaves no whole'),
        (lambda: KWConv2d(8, 8, 1, attention=dict(reduction=-1)), 'reduction must be a positive'),
        (lambda: KWConv2d(8, 8, 1, attention=dict(norm_layer='Norm')), "must be .* 'Norm'"),
        (lambda: KWConv2d(8, 8, 1, attention=dict(function='relu')), "function .* got 'relu'"),
        (lambda: DYConv2d(8, 8, 1, function='sigmoid'), "softmax, caf, but got 'sigmoid'"),
        (lambda: KWConv2d(8, 8, 1, attention=dict(scope='cell')), "scope .* got 'cell'"),
        (
            lambda: KWConv2d(8, 8, 1, attention=dict(scope='mixture', basis_ratio=1 / 16)),
            'basis_ratio=0.0625 is for cells of other layers',
        ),
        (
            lambda: KWConv2d(8, 8, 1, budget=1 / 4, attention=dict(scope='mixture')),
            "scope='mixture' needs a whole budget",
        ),
        (lambda: KWConv2d(8, 8, 1, allocation='two'), "allocation .* got 'two'"),
        (
            lambda: KWConv2d(8, 8, 1, allocation='several_to_one'),
            "'several_to_one' needs a whole budget of at least 2, but got 1",
        ),
        (
            lambda: KWConv2d(8, 8, 1, allocation='one_to_two'),
            "'one_to_two' needs a budget of 1/2, but got 1",
        ),
        (lambda: KWResNet(18, sharing='block'), "sharing .* got 'block'"),
        (
            lambda: fold_attentions(make(attention=dict(function='softmax'), temperature=0), 0),
            "function='caf'.* can be folded",
        ),
    ],
)
def test_options_without_meaning_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(budget=2, allocation='several_to_one'), "allocation='several_to_one'"),
        (dict(budget=1, attention=dict(od_heads=True)), 'with od_heads'),
        (dict(budget=1 / 2), 'budget below 1'),
    ],
)
def test_plain_kernels_are_refused_where_no_cells_make_the_layer_plain(options, message):
    layer = KWConv2d(8, 8, 3, **options)
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(nn.Conv2d(8, 8, 3, bias=False).state_dict())


@pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')
@pytest.mark.parametrize('scope', ['warehouse', 'mixture'])
def test_plain_kernels_start_every_scope(scope):
    plain = nn.Conv2d(8, 8, 3, bias=False).double()
    layer = KWConv2d(8, 8, 3, bias=False, budget=1, attention=dict(scope=scope)).double().eval()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    set_temperature(layer, 0)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-2, atol=1e-2)
