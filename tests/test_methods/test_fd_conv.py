"""FDConv against the authors' layer, and against a loop over frequencies."""

import cmath
import math
import zlib

import numpy as np
import pytest
import torch
from golden import load_golden, make_input, make_tensor
from torch import nn

from mmkw.methods.fd_conv import FDConv2d, frequency_groups

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


@pytest.mark.parametrize('name', NAMES)
def test_order_of_the_coefficients(name):
    indices = load_golden(f'fdconv_{name}')['indices']
    groups = frequency_groups(*indices['bins'], indices['groups']).numpy()
    assert zlib.crc32(groups.astype(np.int32).tobytes()) == indices['group_map_crc32']


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
