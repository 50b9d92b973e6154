"""FDConv against the authors' layer, and against a loop over frequencies."""

import cmath
import math
import zlib

import numpy as np
import pytest
import torch
from golden import load_golden, make_input, make_tensor
from torch import nn

from mmkw.methods.fd_conv import (
    BandModulation,
    FDConv2d,
    band_masks,
    frequency_groups,
    frequency_order,
    spectrum_kernels,
)

NAMES = ['k1_64_256', 'k3_32_32_wide_map', 'k3_64_128_s2', 'k3_64_64', 'k3_64_64_kn4_fdw_global']
# Names of options in the authors' code.
OPTIONS = {'kernel_num': 'num_kernels', 'att_multi': 'max_gate', 'use_ksm_local': 'local_gate'}


def make(golden):
    options = {OPTIONS.get(name, name): value for name, value in golden['options'].items()}
    if options.pop('use_fbm_if_k_in', None) == []:
        options['bands'] = ()
    return FDConv2d(**golden['conv'], **options)


@pytest.mark.parametrize('name', NAMES)
def test_released_layer(name):
    golden = load_golden(f'fdconv_{name}')
    layer = make(golden)
    assert [[n, list(t.shape)] for n, t in layer.state_dict().items()] == golden['state_dict']
    assert sum(p.numel() for p in layer.parameters()) == golden['num_parameters']
    layer.load_state_dict({n: make_tensor(n, shape) for n, shape in golden['state_dict']})
    layer.double()
    x = make_input(golden).double()
    inner = record_inner_values(layer)
    for mode, expected in golden['outputs'].items():
        if mode == 'train':
            layer.train()
            nn.init.zeros_(layer.KSM_Global.bn.running_mean)
            nn.init.ones_(layer.KSM_Global.bn.running_var)
        else:
            layer.eval()
        with torch.no_grad():
            y = layer(x).flatten(1)
        norms = torch.tensor(expected['output']['norm'], dtype=torch.float64)
        first = torch.tensor(expected['output']['first'], dtype=torch.float64)
        torch.testing.assert_close(y.norm(dim=1), norms, rtol=1e-9, atol=0)
        torch.testing.assert_close(y[:, :8], first, rtol=1e-9, atol=1e-10)
        assert inner.keys() == expected['inner'].keys()
        for part, values in expected['inner'].items():
            found = inner[part].flatten(1)
            norms = torch.tensor(values['norm'], dtype=torch.float64)
            first = torch.tensor(values['first'], dtype=torch.float64)
            torch.testing.assert_close(found.norm(dim=1), norms, rtol=1e-9, atol=0)
            torch.testing.assert_close(found[:, :4], first, rtol=1e-9, atol=1e-10)


def record_inner_values(layer):
    """Gates, logits, mixed kernels and gated maps of a forward pass, under the authors' names."""
    found = {}

    def keep_gates(module, inputs, gates):
        for name, value in gates._asdict().items():
            if value is not None:
                found[f'KSM_Global.{name}'] = value
        kernels = spectrum_kernels(layer.weighted_spectra(gates.kernel), layer.kernel_size[0])
        found['mixed_weight'] = kernels.transpose(2, 3)

    layer.KSM_Global.register_forward_hook(keep_gates)
    if layer.KSM_Local is not None:
        layer.KSM_Local.register_forward_hook(
            lambda module, inputs, logits: found.update(KSM_Local=logits.transpose(1, 2))
        )
    if layer.FBM is not None:
        layer.FBM.register_forward_hook(lambda module, inputs, maps: found.update(FBM=maps))
    return found


@pytest.mark.parametrize('name', NAMES)
def test_order_of_the_coefficients(name):
    indices = load_golden(f'fdconv_{name}')['indices']
    groups = frequency_groups(*indices['bins'], indices['groups']).numpy()
    assert zlib.crc32(groups.astype(np.int32).tobytes()) == indices['group_map_crc32']
    order = frequency_order(*indices['bins']).numpy()
    assert zlib.crc32(order.astype(np.int32).tobytes()) == indices['sorted_flat_crc32']


@pytest.mark.parametrize('name', NAMES)
def test_plain_kernels_are_converted(name):
    golden = load_golden(f'fdconv_{name}')
    layer = make(golden).double()
    kernel = make_tensor('weight', layer.kernel_shape).double()
    layer.load_state_dict({'weight': kernel}, strict=False)
    expected = golden['converted_weight']
    weight = layer.dft_weight.detach().flatten()
    assert weight.norm().item() == pytest.approx(expected['norm'][0], rel=1e-9)
    torch.testing.assert_close(
        weight[:8], torch.tensor(expected['first'][0], dtype=torch.float64), rtol=1e-9, atol=1e-10
    )


def test_converted_layer_with_gates_of_one_is_the_plain_one():
    torch.manual_seed(0)
    plain = nn.Conv2d(32, 24, 3, stride=2, padding=1).double()
    layer = FDConv2d(32, 24, 3, stride=2, padding=1, num_kernels=8, starts_at_one=True).double()
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(3, 32, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-3, atol=1e-4)


def test_kernel_by_a_loop_over_frequencies():
    """The inverse transform of weighted coefficients, one element and one frequency at a time."""
    torch.manual_seed(0)
    layer = FDConv2d(18, 18, 1, num_kernels=5, local_gate=False).double().eval()
    pooled = torch.randn(2, 18, dtype=torch.float64)
    gates = layer.KSM_Global(pooled)
    groups = frequency_groups(18, 10, 5).view(18, 10)
    weight = torch.view_as_complex(layer.dft_weight[0].detach())
    expected = torch.zeros(2, 18, 18, dtype=torch.float64)
    for n in range(2):
        spectrum = [
            [weight[i, j].item() * 9 * 5 * gates.kernel[n, groups[i, j]].item() for j in range(10)]
            for i in range(18)
        ]
        for row in range(18):
            partial = [
                sum(spectrum[i][j] * cmath.exp(2j * math.pi * i * row / 18) for i in range(18)) / 18
                for j in range(10)
            ]
            for column in range(18):
                total = partial[0].real + partial[9].real * (-1) ** column
                for j in range(1, 9):
                    total += 2 * (partial[j] * cmath.exp(2j * math.pi * j * column / 18)).real
                expected[n, row, column] = total / 18
    expected = expected * gates.channel[:, None] * gates.filter[:, :, None]
    torch.testing.assert_close(layer.sample_kernels(pooled).flatten(2), expected)


def kernels_by_definition(layer, pooled, options):
    """The kernels for the pooled input, by NumPy, without the local gate."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    copies, num = options.get('copies', 1), layer.num_kernels
    size, (c_out, c_in) = layer.kernel_size[0], layer.kernel_shape[:2]
    rows, columns, half = c_out * size, c_in * size, min(c_out, c_in) // 2
    z = pooled.numpy() @ state['KSM_Global.fc.weight'][..., 0, 0].T
    mean, var = state['KSM_Global.bn.running_mean'], state['KSM_Global.bn.running_var']
    z = (z - mean) / np.sqrt(var + 1e-5)
    z = z * state['KSM_Global.bn.weight'] + state['KSM_Global.bn.bias']
    z = state['KSM_Global.relu.scale'] * np.maximum(z, 0) ** 2 + state['KSM_Global.relu.bias']

    def logits(head, temperature):
        weight = state[f'KSM_Global.{head}_fc.weight'][..., 0, 0]
        return (z @ weight.T + state[f'KSM_Global.{head}_fc.bias']) / temperature

    activation = options.get('activation', 'sigmoid')
    kernel_temperature = options.get('kernel_temperature', 1.0)
    if options.get('num_kernels', 64) is None:
        kernel_temperature = math.sqrt(num * copies)
    temperature = options.get('temperature', 1.0) or kernel_temperature
    pi = logits('kernel', kernel_temperature)
    if activation == 'softmax':
        pi = np.exp(pi) / np.exp(pi).sum(1, keepdims=True)
    else:
        pi = (2 * sigmoid(pi) if activation == 'sigmoid' else 1 + np.tanh(pi)) / (num * copies)

    if options.get('stores_kernel'):
        matrix = state['weight'].transpose(0, 2, 1, 3).reshape(rows, columns)
        spectra = np.repeat(np.fft.rfft2(matrix)[None] / half, copies, 0).reshape(copies, -1)
    else:
        weight = state['dft_weight']
        spectra = (weight[..., 0] + 1j * weight[..., 1]).reshape(copies, -1)
    order = frequency_order(rows, columns // 2 + 1).numpy()
    kept = int(len(order) * options.get('kept', 1))
    result = np.zeros((len(pi), len(order)), complex)
    for rank, place in enumerate(order[:kept]):
        source, alpha = (place, half * num * copies) if kept == len(order) else (rank, 1)
        for copy in range(copies):
            share = pi[:, copy * num + rank // (kept // num)]
            result[:, place] += alpha * spectra[copy, source] * share
    result = np.fft.ifft(result.reshape(-1, rows, columns // 2 + 1), axis=1)
    kernels = np.fft.irfft(result, n=columns, axis=2)
    kernels = kernels.reshape(-1, c_out, size, c_in, size).transpose(0, 1, 3, 2, 4)
    if options.get('only_kernel_attention'):
        return torch.from_numpy(kernels)
    for head, shape in (
        ('channel', (1, c_in, 1, 1)), ('filter', (c_out, 1, 1, 1)), ('spatial', (1, 1, size, size))
    ):  # fmt: skip
        if head != 'spatial' or size > 1:
            values = logits(head, temperature)
            values = 2 * sigmoid(values) if activation == 'sigmoid' else 1 + np.tanh(values)
            kernels = kernels * values.reshape(-1, *shape)
    return torch.from_numpy(kernels)


@pytest.mark.parametrize(
    'options',
    [
        dict(activation='tanh', temperature=2.0, kernel_temperature=0.5),
        dict(activation='softmax', only_kernel_attention=True, num_kernels=9),
        dict(num_kernels=None, temperature=None),
        dict(copies=3),
        dict(copies=2, kept=0.5, num_kernels=3),
        dict(stores_kernel=True, copies=2, kernel_size=1),
    ],
    ids=lambda options: '-'.join(options),
)
def test_options_by_definition(options):
    torch.manual_seed(0)
    arguments = {**dict(kernel_size=3, num_kernels=6, local_gate=False, bands=()), **options}
    layer = FDConv2d(20, 18, **arguments).double().eval()
    for name, parameter in layer.named_parameters():
        if name.startswith('KSM'):
            nn.init.normal_(parameter, std=0.5)
    pooled = torch.randn(2, 20, dtype=torch.float64)
    expected = kernels_by_definition(layer, pooled, options)
    torch.testing.assert_close(layer.sample_kernels(pooled), expected)


@pytest.mark.parametrize('activation', ['sigmoid', 'tanh', 'softmax'])
def test_bands_by_definition(activation):
    """Groups of channels, each with its own gates, and a gate of the lowest band."""
    torch.manual_seed(0)
    module = BandModulation(6, (2, 4), 3, activation, gates_lowest=True).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 8, 7, dtype=torch.float64)
    spectrum = np.fft.rfft2(x.numpy())
    lows = [x.numpy()]
    for mask in band_masks((8, 7), (2, 4)).numpy():
        rows = np.fft.ifft(spectrum * mask, axis=2)
        lows.append(np.fft.irfft(rows, n=7, axis=3))
    bands = [lows[0] - lows[1], lows[1] - lows[2], lows[2]]
    expected = torch.zeros_like(x)
    for band, conv in zip(bands, module.freq_weight_conv_list):
        logits = [
            nn.functional.conv2d(x[:, 2 * g : 2 * g + 2], conv.weight[g : g + 1], padding=1)
            + conv.bias[g]
            for g in range(3)
        ]
        for channel in range(6):
            z = logits[channel // 2][:, 0]
            gate = {
                'sigmoid': 2 / (1 + (-z).exp()),
                'tanh': 1 + z.tanh(),
                'softmax': 3 * z.exp() / sum(other[:, 0].exp() for other in logits),
            }[activation]
            expected[:, channel] += gate * torch.from_numpy(band[:, channel])
    torch.testing.assert_close(module(x), expected)


def test_options_of_local_gates_and_strides():
    torch.manual_seed(0)
    layer = FDConv2d(20, 18, 1, stride=2, num_kernels=1, bands_if_strided=True).double().eval()
    assert layer.FBM is not None and layer(torch.randn(2, 20, 6, 6).double()).shape[2:] == (3, 3)
    layer = FDConv2d(20, 18, 1, num_kernels=1, local_activation='tanh', bands=()).double().eval()
    nn.init.normal_(layer.KSM_Local.conv.weight)
    pooled = torch.randn(2, 20, dtype=torch.float64)
    local = 1 + layer.KSM_Local(pooled).tanh()
    gated = layer.sample_kernels(pooled)
    layer.KSM_Local = None
    torch.testing.assert_close(gated.flatten(2), layer.sample_kernels(pooled).flatten(2) * local)


def test_checkpoint_with_a_stored_kernel_loads_everywhere():
    """The authors' ``convert_param=False``."""
    torch.manual_seed(0)
    stored = FDConv2d(20, 18, 3, num_kernels=6, stores_kernel=True).eval()
    layer = FDConv2d(20, 18, 3, num_kernels=6).eval()
    layer.load_state_dict(stored.state_dict())
    x = torch.randn(2, 20, 6, 6)
    torch.testing.assert_close(layer(x), stored(x))


def test_resnet50_has_the_parameters_of_the_paper():
    """+3.6M for the three convolutions of each block."""
    extra = 0
    in_channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for _ in range(blocks):
            for c_in, c_out, size in (
                (in_channels, width, 1), (width, width, 3), (width, 4 * width, 1)
            ):  # fmt: skip
                layer = FDConv2d(c_in, c_out, size, bias=False)
                extra += sum(p.numel() for p in layer.parameters()) - c_in * c_out * size**2
            in_channels = 4 * width
    assert extra == 3_647_120


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(groups=2), 'FDConv2d has no groups, but got groups=2'),
        (dict(in_channels=33), 'even number of input channels, but got 33'),
        (dict(num_kernels=11), 'num_kernels=11 sets of equal size'),
        (dict(num_kernels=0), 'num_kernels must be a positive integer, but got 0'),
        (dict(activation='softmax'), 'softmax needs only_kernel_attention'),
        (
            dict(band_activation='relu'),
            'band_activation must be one of sigmoid, tanh, softmax, but',
        ),
        (
            dict(band_groups=5, num_kernels=8),
            'band_groups must divide the 32 input channels, but got 5',
        ),
        (dict(kept=2), 'kept must be at most 1'),
        (dict(kept=0.5, stores_kernel=True), 'got 0.5 and stores_kernel=True'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FDConv2d(**{**dict(in_channels=32, out_channels=32, kernel_size=3), **arguments})


def test_small_layers_are_plain():
    layer = FDConv2d(16, 64, 3, padding=1)
    assert list(layer.state_dict()) == ['bias', 'weight']
    plain = nn.Conv2d(16, 64, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize(
    'dtype',
    [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.newer_torch)],
)
def test_autocast_and_gradients(dtype):
    torch.manual_seed(0)
    layer = FDConv2d(32, 32, 3, padding=1, num_kernels=8)
    x = torch.randn(4, 32, 12, 12, requires_grad=True)
    expected = layer(x)
    with torch.autocast('cpu', dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert (y - expected).norm() < 0.03 * expected.norm()
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_single_sample_cannot_be_trained_on():
    with pytest.raises(ValueError, match='at least 2 samples per device, or norm_eval=True'):
        FDConv2d(32, 32, 3, num_kernels=8)(torch.randn(1, 32, 8, 8))


@pytest.mark.newer_torch
def test_empty_batches_and_recordings():
    layer = FDConv2d(32, 32, 3, padding=1, num_kernels=8).eval()
    assert layer(torch.randn(0, 32, 8, 8)).shape == (0, 32, 8, 8)
    x = torch.randn(2, 32, 8, 8)
    expected = layer(x)
    with pytest.raises(RuntimeError, match='cannot be recorded'):
        torch.jit.trace(layer, x)
    with pytest.raises(RuntimeError, match='cannot be recorded'):
        torch.export.export(layer, (x,), strict=False)
    torch.testing.assert_close(layer(x), expected)


def test_layers_on_the_meta_device_leave_no_trace():
    with torch.device('meta'):
        layer = FDConv2d(48, 32, 3, padding=1, num_kernels=8)
    assert layer(torch.empty(2, 48, 6, 6, device='meta')).shape == (2, 32, 6, 6)
    assert FDConv2d(48, 32, 3, padding=1, num_kernels=8)(torch.randn(2, 48, 6, 6)).isfinite().all()


def test_bands_are_not_part_of_the_kernels():
    assert not FDConv2d(32, 32, 3, num_kernels=8).has_kernels
    assert FDConv2d(32, 32, 3, num_kernels=8, bands=()).has_kernels
