"""KW layers against the equations, forward and backward, in float64, by every route."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from by_hand import gradients, kernel_warehouse, warehouse_kernels
from torch import nn

from mmkw.methods import set_temperature
from mmkw.methods.kernel_warehouse import KWConv1d, KWConv2d, KWConv3d, KWLinear
from mmkw.networks import WarehouseConfig, apply_plan
from mmkw.ops import ROUTES, convolution, forced_route


@pytest.fixture
def small_blocks(monkeypatch):
    """Let the blockwise route assemble one sample and one row of the cells at a time."""
    monkeypatch.setitem(convolution.BLOCK_BYTES, 'cpu', 1)
    monkeypatch.setattr(convolution, 'MIN_ROWS', 1)


def prepare(network, temperature=0.3):
    """Leave no parameter or statistic at a special value."""
    torch.manual_seed(0)
    network.double()
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if 'norm' in name and tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.2, 1.2)
        elif 'beta' not in name and 'temperature' not in name and tensor.is_floating_point():
            nn.init.normal_(tensor.data)
    set_temperature(network, temperature)
    return network


def check(network, layer, x, by_hand):
    expected = gradients(network, x, by_hand)
    for route in ROUTES:
        with forced_route(route):
            actual = gradients(network, x, layer)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def check_conv(dims, batch, size, training, temperature=0.3, **options):
    layer = {1: KWConv1d, 2: KWConv2d, 3: KWConv3d}[dims](**options).train(training)
    prepare(layer, temperature)
    x = torch.randn(batch, options['in_channels'], *size, dtype=torch.float64)
    geometry = {k: options[k] for k in ('stride', 'padding', 'dilation', 'groups') if k in options}

    def by_hand(x):
        y = kernel_warehouse(layer, x, geometry)
        return y if layer.bias is None else y + layer.bias.view(-1, *[1] * dims)

    check(layer, layer, x, by_hand)


BUDGETS = [1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4]
GEOMETRIES = [
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=1, padding=1, bias=False),
    dict(kernel_size=1, groups=2),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1, bias=False),
    dict(kernel_size=3, dilation=2, padding=2),
    dict(kernel_size=3, groups=2, padding='same'),
    dict(kernel_size=3, groups=8, padding=1),
    dict(kernel_size=(3, 1), stride=(1, 2), padding=(1, 0)),
    dict(kernel_size=7, stride=2, padding=3),
    dict(kernel_size=7, dilation=2, padding='valid', groups=4),
]
SHAPE = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_conv2d_geometries(geometry):
    size, channels, cell_ratio = (5, 6), dict(in_channels=8, out_channels=16), 0.5
    if geometry['kernel_size'] == 7:
        # Of the many mixtures the loop would take half a minute with more channels.
        size, channels, cell_ratio = (14, 13), dict(in_channels=4, out_channels=4), 1
    check_conv(2, 3, size, True, budget=1, cell_ratio=cell_ratio, **channels, **geometry)


@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize(('batch', 'training'), [(1, False), (2, True)])
def test_conv2d_budgets(budget, batch, training):
    check_conv(2, batch, (4, 5), training, budget=budget, cell_ratio=0.5, **SHAPE)


@pytest.mark.parametrize('budget', [4, 1, 1 / 3])
def test_depthwise_budgets(budget):
    shape = dict(SHAPE, in_channels=6, out_channels=6, groups=6)
    check_conv(2, 2, (4, 5), True, budget=budget, cell_ratio=1, **shape)


@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
def test_temperatures(temperature):
    check_conv(2, 2, (4, 4), True, temperature=temperature, budget=1 / 2, **SHAPE)


@pytest.mark.usefixtures('small_blocks')
@pytest.mark.parametrize('dims', [1, 3])
@pytest.mark.parametrize('geometry', [*GEOMETRIES[:2], *GEOMETRIES[4:9]], ids=str)
def test_other_dimensions(dims, geometry):
    shape = dict(in_channels=8, out_channels=8, budget=1 / 2, cell_ratio=(0.5, 0.5))
    if geometry.get('groups') == 8:
        shape.update(budget=1, cell_ratio=1)
    check_conv(dims, 2, (5, 6, 5)[:dims], True, **shape, **geometry)


def test_cells_that_cover_the_kernel_size():
    options = dict(spatial_partition=False, cell_ratio=0.5, budget=2)
    check_conv(2, 2, (4, 5), True, **SHAPE, **options)


def test_layer_norm_trains_on_a_single_sample():
    check_conv(2, 1, (4, 5), True, attention=dict(norm_layer='LayerNorm'), **SHAPE)


@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize('tokens', [(), (5,), (2, 3)])
def test_linear(budget, tokens):
    layer = prepare(KWLinear(8, 16, budget=budget, cell_ratio=0.5))

    def by_hand(x):
        pooled = x.mean(dim=tuple(range(1, x.dim() - 1))) if tokens else x
        kernels = warehouse_kernels(layer, pooled).squeeze(-1)
        return torch.stack([F.linear(sample, w, layer.bias) for sample, w in zip(x, kernels)])

    check(layer, layer, torch.randn(3, *tokens, 8, dtype=torch.float64), by_hand)


@pytest.mark.parametrize('basis_ratio', [None, 1 / 4])
def test_shared_warehouse(basis_ratio):
    """Two layers of different shape in one warehouse: first cells, order of cells, basis."""
    plain = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    config = WarehouseConfig(
        ['2', '0'], budget=1 / 2, cell_ratio=1 / 2, attention=dict(basis_ratio=basis_ratio)
    )
    network = prepare(apply_plan(plain, {'all': config}))
    first, second = network[0], network[2]
    # Cells of 4 x 4: 4 x 2 blocks at 9 positions, then 2 x 4 blocks.
    assert (first.partition.num_mixtures, second.partition.num_mixtures) == (72, 8)
    assert (first.partition.first_cell, second.partition.first_cell) == (0, 36)
    for layer, geometry in ((first, dict(padding=1)), (second, {})):

        def by_hand(x, layer=layer, geometry=geometry):
            return kernel_warehouse(layer, x, geometry) + layer.bias.view(-1, 1, 1)

        check(network, layer, torch.randn(2, layer.in_channels, 4, 4, dtype=torch.float64), by_hand)


def test_one_to_one_at_temperature_1():
    """Exactly the plain convolution with the cells as kernel, whatever the attention's weights."""
    layer = prepare(KWConv2d(8, 8, 3, cell_ratio=0.5), temperature=1).eval()
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    kernel = (
        layer.warehouse.cells.view(3, 3, 2, 2, 4, 4).permute(2, 4, 3, 5, 0, 1).reshape(8, 8, 3, 3)
    )
    assert torch.equal(layer.kernels(x), kernel.expand(3, -1, -1, -1, -1))
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.bias))


def test_initial_scale():
    """Kaiming normal over fan_out of a layer's own slice; attention linears likewise."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 128, 3))
    apply_plan(network, {'all': WarehouseConfig(['0', '1'], budget=2)})
    cells = network.warehouses['all'].cells
    assert cells.shape == (54, 64, 64, 1, 1)
    for own, slice_ in ((18, cells[:18]), (36, cells[18:])):
        assert slice_.std().item() == pytest.approx((2 / (own * 64)) ** 0.5, rel=0.02)
    attention = network[0].attention
    assert attention.fc2.weight.std().item() == pytest.approx((2 / (9 * 55)) ** 0.5, rel=0.03)
    assert attention.fc1.bias is None and not attention.fc2.bias.any()


def test_without_a_warehouse_and_with_other_features():
    with pytest.raises(RuntimeError, match=r'KWConv2d\(8, 8, .*has no warehouse yet: apply a plan'):
        KWConv2d(8, 8, 1, budget=None)(torch.zeros(2, 8, 3, 3))
    with pytest.raises(ValueError, match=r'shape \(N, ..., 8\), but got \(2, 5, 4\)'):
        KWLinear(8, 8)(torch.zeros(2, 5, 4))


@pytest.mark.parametrize('shape', [(2, 0, 8), (0, 5, 8), (0, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize('training', [True, False])
def test_linear_layer_without_tokens(shape, training):
    layer, plain = KWLinear(8, 4).train(training), nn.Linear(8, 4)
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == plain(x).shape
    y.sum().backward()
    assert x.grad.shape == x.shape and not layer.warehouse.cells.grad.any()
