"""KW layers against loops written from the equations, forward and backward, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
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


CONV = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}


def attention_by_hand(layer, x):
    """Appendix A.3 and Eq. 4, row by row, from the layer's parameters alone."""
    attention, warehouse, partition = layer.attention, layer.warehouse, layer.partition
    n, m = partition.num_cells, partition.num_mixtures
    hidden = x @ attention.fc1.weight.T
    norm = attention.norm
    if isinstance(norm, nn.LayerNorm):
        hidden = hidden + attention.fc1.bias
        mean = hidden.mean(1, keepdim=True)
        var = ((hidden - mean) ** 2).mean(1, keepdim=True)
    elif norm.training:
        mean, var = hidden.mean(0), ((hidden - hidden.mean(0)) ** 2).mean(0)
    else:
        mean, var = norm.running_mean, norm.running_var
    hidden = ((hidden - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias).clamp(min=0)
    logits = hidden @ attention.fc2.weight.T
    if attention.fc2.bias is not None:
        logits = logits + attention.fc2.bias

    tau = warehouse.temperature
    samples = []
    for row in logits:
        alphas = []
        for i, z in enumerate(row.chunk(m)):
            if attention.fc3 is not None:
                own = partition.num_own_cells
                others = attention.fc3.weight @ z[own:-1]
                start = partition.first_cell
                z = torch.cat([others[:start], z[:own], others[start:], z[-1:]])
                z = z + attention.basis_bias[i * (n + 1) : (i + 1) * (n + 1)]
            total = sum(value.abs() for value in z) + 1e-3
            alpha = []
            for j in range(n):
                beta = 1.0 if partition.initial_cells[i] == j else 0.0
                alpha.append(tau * beta + (1 - tau) * z[j] / total)
            alphas.append(torch.stack(alpha))
        samples.append(torch.stack(alphas))
    return torch.stack(samples)


def kernels_by_hand(layer, alpha):
    """Eqs. 2 and 3: every mixture at its place in every sample's kernel."""
    cells = layer.warehouse.cells
    c_out, c_in, *cell_spatial = cells.shape[1:]
    out_channels, in_channels, *size = layer.kernel_shape
    positions = itertools.product(*(range(0, k, s) for k, s in zip(size, cell_spatial)))
    places = list(
        itertools.product(positions, range(0, out_channels, c_out), range(0, in_channels, c_in))
    )
    assert len(places) == layer.partition.num_mixtures
    kernels = []
    for sample in alpha:
        kernel = cells.new_zeros(layer.kernel_shape)
        for mixture, (position, out, channel) in zip(sample, places):
            spatial = [slice(p, p + s) for p, s in zip(position, cell_spatial)]
            block = sum(weight * cell for weight, cell in zip(mixture, cells))
            padded = torch.zeros_like(kernel)
            padded[(slice(out, out + c_out), slice(channel, channel + c_in), *spatial)] = block
            kernel = kernel + padded
        kernels.append(kernel)
    return torch.stack(kernels)


def output_and_gradients(function, layer, x):
    """Of a fixed projection of the output."""
    x.grad = None
    layer.zero_grad()
    layer.warehouse.cells.grad = None
    y = function(x)
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).cos()
    (y * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    return y, {**gradients, 'x': x.grad.clone(), 'cells': layer.warehouse.cells.grad.clone()}


def assert_same_with_gradients(layer, x, by_hand):
    """Compare the layer with ``by_hand(x)``, by every route that computes it."""
    expected, expected_gradients = output_and_gradients(by_hand, layer, x)
    for route in ROUTES:
        with forced_route(route):
            y, gradients = output_and_gradients(layer, layer, x)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10, msg=route)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient,
                expected_gradients[name],
                rtol=1e-8,
                atol=1e-10,
                msg=lambda m, where=f'{route}, {name}: ': where + m,
            )


def randomise(layer):
    """Leave no parameter or statistic at a special value."""
    for name, tensor in itertools.chain(layer.named_parameters(), layer.named_buffers()):
        if tensor.is_floating_point() and 'beta' not in name and 'temperature' not in name:
            nn.init.uniform_(tensor.data, 0.2, 1.2) if 'norm' in name else nn.init.normal_(
                tensor.data
            )


def check_conv(dims, batch, size, training, temperature=0.3, **options):
    torch.manual_seed(0)
    layer_type = {1: KWConv1d, 2: KWConv2d, 3: KWConv3d}[dims]
    layer = layer_type(**options).double().train(training)
    randomise(layer)
    set_temperature(layer, temperature)
    x = torch.randn(batch, options['in_channels'], *size, dtype=torch.float64, requires_grad=True)

    def by_hand(x):
        kernels = kernels_by_hand(layer, attention_by_hand(layer, x.flatten(2).mean(2)))
        geometry = {k: v for k, v in options.items() if k in ('stride', 'dilation', 'groups')}
        padding = options.get('padding', 0)
        return torch.cat(
            [
                CONV[dims][1](sample[None], kernel, layer.bias, padding=padding, **geometry)
                for sample, kernel in zip(x, kernels)
            ]
        )

    assert_same_with_gradients(layer, x, by_hand)


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
    shape = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    check_conv(2, batch, (4, 5), training, budget=budget, cell_ratio=0.5, **shape)


@pytest.mark.parametrize('budget', [4, 1, 1 / 3])
def test_depthwise_budgets(budget):
    shape = dict(in_channels=6, out_channels=6, groups=6, kernel_size=3, padding=1)
    check_conv(2, 2, (4, 5), True, budget=budget, cell_ratio=1, **shape)


@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
def test_temperatures(temperature):
    shape = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    check_conv(2, 2, (4, 4), True, temperature=temperature, budget=1 / 2, **shape)


@pytest.mark.usefixtures('small_blocks')
@pytest.mark.parametrize('dims', [1, 3])
@pytest.mark.parametrize('geometry', [*GEOMETRIES[:2], *GEOMETRIES[4:9]], ids=str)
def test_other_dimensions(dims, geometry):
    shape = dict(in_channels=8, out_channels=8, budget=1 / 2, cell_ratio=(0.5, 0.5))
    if geometry.get('groups') == 8:
        shape.update(budget=1, cell_ratio=1)
    check_conv(dims, 2, (5, 6, 5)[:dims], True, **shape, **geometry)


def test_cells_that_cover_the_kernel_size():
    shape = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    check_conv(2, 2, (4, 5), True, spatial_partition=False, cell_ratio=0.5, budget=2, **shape)


def test_layer_norm_trains_on_a_single_sample():
    shape = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    check_conv(2, 1, (4, 5), True, attention=dict(norm_layer='LayerNorm'), **shape)


@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize('tokens', [(), (5,), (2, 3)])
def test_linear(budget, tokens):
    torch.manual_seed(0)
    layer = KWLinear(8, 16, budget=budget, cell_ratio=0.5).double()
    randomise(layer)
    set_temperature(layer, 0.3)
    x = torch.randn(3, *tokens, 8, dtype=torch.float64, requires_grad=True)

    def by_hand(x):
        pooled = x.mean(dim=tuple(range(1, x.dim() - 1))) if tokens else x
        kernels = kernels_by_hand(layer, attention_by_hand(layer, pooled)).squeeze(-1)
        return torch.stack([F.linear(sample, w, layer.bias) for sample, w in zip(x, kernels)])

    assert_same_with_gradients(layer, x, by_hand)


@pytest.mark.parametrize('basis_ratio', [None, 1 / 4])
def test_shared_warehouse(basis_ratio):
    """Two layers of different shape in one warehouse: first cells, order of cells, basis."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    config = WarehouseConfig(
        ['2', '0'], budget=1 / 2, cell_ratio=1 / 2, attention=dict(basis_ratio=basis_ratio)
    )
    network = apply_plan(plain, {'all': config}).double()
    first, second = network[0], network[2]
    # Cells of 4 x 4: 4 x 2 blocks at 9 positions, then 2 x 4 blocks.
    assert (first.partition.num_mixtures, second.partition.num_mixtures) == (72, 8)
    assert (first.partition.first_cell, second.partition.first_cell) == (0, 36)
    randomise(network)
    set_temperature(network, 0.3)
    for layer, conv in ((first, dict(padding=1)), (second, {})):
        x = torch.randn(2, layer.in_channels, 4, 4, dtype=torch.float64, requires_grad=True)

        def by_hand(x, layer=layer, conv=conv):
            kernels = kernels_by_hand(layer, attention_by_hand(layer, x.flatten(2).mean(2)))
            samples = zip(x, kernels)
            return torch.cat([F.conv2d(s[None], k, layer.bias, **conv) for s, k in samples])

        assert_same_with_gradients(layer, x, by_hand)


def test_gradcheck():
    torch.manual_seed(0)
    layer = KWConv2d(4, 4, 3, padding=1, cell_ratio=0.5).double().eval()
    set_temperature(layer, 0.3)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
def test_padding_modes(mode):
    torch.manual_seed(0)
    layer = KWConv2d(4, 4, 3, padding=(1, 2), padding_mode=mode).eval()
    x = torch.randn(2, 4, 5, 6)
    plain = nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode=mode)
    for sample, kernel, y in zip(x, layer.kernels(x), layer(x)):
        plain.weight.data, plain.bias.data = kernel, layer.bias.data
        torch.testing.assert_close(y, plain(sample))


def test_one_to_one_at_temperature_1():
    """Exactly the plain convolution with the cells as kernel, whatever the attention's weights."""
    layer = KWConv2d(8, 8, 3, cell_ratio=0.5).eval()
    randomise(layer)
    set_temperature(layer, 1)
    x = torch.randn(3, 8, 5, 5)
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


@pytest.mark.parametrize('training', [True, False])
def test_empty_batch(training):
    layer = KWConv2d(8, 16, 3, stride=2, padding=1).train(training)
    y = layer(torch.zeros(0, 8, 6, 6))
    assert y.shape == (0, 16, 3, 3)
    y.sum().backward()
    assert not layer.warehouse.cells.grad.any()
    assert KWLinear(8, 4).train(training)(torch.zeros(0, 5, 8)).shape == (0, 5, 4)


def test_layers_take_the_plain_layers_arguments():
    assert KWConv2d(3, 8, 3)(torch.zeros(2, 3, 7, 7)).shape == (2, 8, 5, 5)
    assert KWConv1d(4, 8, 3)(torch.zeros(2, 4, 7)).shape == (2, 8, 5)
    assert KWConv3d(4, 8, 3)(torch.zeros(2, 4, 7, 7, 7)).shape == (2, 8, 5, 5, 5)
    assert KWLinear(4, 8)(torch.zeros(2, 4)).shape == (2, 8)


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: KWConv2d(6, 8, 3, groups=4), ValueError, 'divisible by groups'),
        (lambda: KWConv2d(8, 8, 1, budget=0.3), ValueError, 'budget 3/10 leaves no whole'),
        (
            lambda: KWConv2d(8, 8, 1, attention=dict(reduction=-1)),
            ValueError,
            'reduction must be a positive',
        ),
        (
            lambda: KWConv2d(8, 8, 1, attention=dict(norm_layer='Norm')),
            ValueError,
            "norm_layer must be .* 'Norm'",
        ),
        (
            lambda: KWConv2d(8, 8, 1, budget=None)(torch.zeros(2, 8, 3, 3)),
            RuntimeError,
            r'KWConv2d\(8, 8, .*has no warehouse yet: apply a plan',
        ),
        (
            lambda: KWConv2d(8, 8, 1)(torch.zeros(2, 4, 3, 3)),
            ValueError,
            r'expects input of shape \(N, 8, H, W\), but got \(2, 4, 3, 3\)',
        ),
        (
            lambda: KWLinear(8, 8)(torch.zeros(2, 5, 4)),
            ValueError,
            r'shape \(N, ..., 8\), but got \(2, 5, 4\)',
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('shape', [(2, 0, 8), (0, 5, 8), (0, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize('training', [True, False])
def test_linear_layer_without_tokens(shape, training):
    layer, plain = KWLinear(8, 4).train(training), nn.Linear(8, 4)
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == plain(x).shape
    y.sum().backward()
    assert x.grad.shape == x.shape and not layer.warehouse.cells.grad.any()


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize(
    ('size', 'options'),
    [
        ((2, 2), dict(kernel_size=3)),
        ((1, 5), dict(kernel_size=3)),
        ((2, 9), dict(kernel_size=3, dilation=2)),
        ((0, 5), dict(kernel_size=1)),
        ((0, 5), dict(kernel_size=3, padding=2)),
    ],
    ids=str,
)
def test_image_smaller_than_the_kernel(route, size, options):
    """An error as of the plain layer, which names sizes."""
    x = torch.zeros(2, 4, *size)
    layer, plain = KWConv2d(4, 4, **options), nn.Conv2d(4, 4, **options)
    with pytest.raises(RuntimeError):
        plain(x)
    message = rf'KWConv2d cannot convolve an input of size \({size[0]}, {size[1]}\).*larger images'
    with forced_route(route), pytest.raises(RuntimeError, match=message):
        layer(x)
    fitting = torch.zeros(2, 4, 5, 5)
    assert layer(fitting).shape == plain(fitting).shape


def test_a_batch_of_one_sample_takes_the_running_statistics():
    """In training as in evaluation, and they stay as they are."""
    layer = KWConv2d(8, 8, 1)
    layer(torch.randn(4, 8, 3, 3))
    layer.attention.norm.weight.data.uniform_(0.5, 2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    image = torch.randn(1, 8, 3, 3)
    y = layer(image)
    y.sum().backward()
    assert layer.attention.fc1.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(y, layer.eval()(image))
