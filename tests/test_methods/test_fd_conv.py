"""FDConv against the authors' layer, and against a loop over frequencies."""

import copy
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from fd_conv_by_hand import fd_conv
from golden import load_golden, make_input, make_tensor
from torch import nn

from mmkw.analysis.attention import AttentionRecorder
from mmkw.analysis.complexity import cost_by_stage
from mmkw.methods.fd_conv import (
    FDConv,
    FDConv2d,
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


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(size=(14, 11)),
        dict(kernel_size=1, num_kernels=5, max_gate=1.5),
        dict(stride=2, bias=False, local_gate=False),
        dict(bands=(), num_kernels=1),
        dict(bands=(3, 16), low_band_gate=True, mask_size=(20, 24)),
        dict(band_groups=3, band_activation='softmax', dilation=2),
        dict(band_groups=100, band_activation='tanh'),
        dict(num_kernels=None, temperature=None),
        dict(temperature=3.0, kernel_temperature=0.5, reduction=1.5),
        dict(copies=3),
        dict(copies=2, kept=0.5),
        dict(activation='tanh', local_activation='tanh'),
        dict(activation='softmax', only_kernel_attention=True),
        dict(stores_kernel=True, copies=2, only_kernel_attention=True),
        dict(kernel_size=1, stride=2, num_kernels=2, bands_if_strided=True),
        dict(kernel_size=5, padding=0, kernel_sizes=(5,), band_kernel_sizes=(5,), num_kernels=2),
    ],
    ids=lambda options: ','.join(options) or 'defaults',
)
def test_every_option_by_sums_over_frequencies(options):
    """Large maps with gated kernels; small ones, which have the gates of channels themselves."""
    torch.manual_seed(0)
    defaults = asdict(FDConv(num_kernels=4))
    options = dict(dict(kernel_size=3, padding=1), **options)
    size = options.pop('size', (6, 7))
    layer = FDConv2d(18, 20, **{'num_kernels': 4, **options}).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer.KSM_Global.bn.running_mean.normal_()
    layer.KSM_Global.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 18, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = fd_conv(layer, x, {**defaults, **options})
        y = layer(x)
    assert expected.std() > 1e-4
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9 * expected.std().item())


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
        (dict(kernel_size=(3, 1)), r'needs a square kernel, but got \(3, 1\)'),
        (dict(kept=2), 'kept must be at most 1'),
        (dict(kept=0.5, stores_kernel=True), 'got 0.5 and stores_kernel=True'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FDConv2d(**{**dict(in_channels=32, out_channels=32, kernel_size=3), **arguments})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_kernels=4), r'kernel_fc.weight has shape \(4, .* in the checkpoint'),
        (dict(reduction=1), 'other options'),
        (dict(local_gate=False), 'KSM_Local.conv.weight is missing in the checkpoint'),
        (dict(bands=(2, 4, 8, 16)), 'freq_weight_conv_list.3.weight has .* but is missing'),
        (dict(kept=0.5), 'dft_weight has shape'),
        (dict(in_channels=64), 'other options'),
    ],
)
def test_checkpoints_of_other_layers_are_refused(options, message):
    """Non-strict loading, MMEngine's default, included."""
    given = dict(in_channels=32, out_channels=32, kernel_size=3, num_kernels=8)
    layer, other = FDConv2d(**given), FDConv2d(**{**given, **options})
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(other.state_dict(), strict=False)
    plain = nn.Conv2d(32, 48, 3).state_dict()
    with pytest.raises(ValueError, match=r'weight .* has shape \(48, 32, 3, 3\)'):
        layer.load_state_dict(plain, strict=False)


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


def test_single_sample_trains_with_the_running_statistics():
    layer = FDConv2d(32, 32, 3, padding=1, num_kernels=8)
    layer.KSM_Global.bn.running_mean.normal_()
    before = copy.deepcopy(layer.KSM_Global.bn.state_dict())
    x = torch.randn(1, 32, 5, 5)
    y = layer.train()(x)
    torch.testing.assert_close(y, layer.eval()(x))
    y.sum().backward()
    assert all(torch.equal(v, before[n]) for n, v in layer.KSM_Global.bn.state_dict().items())


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


def test_operations_are_counted():
    """By a trace, which is only for the size that it sees."""
    network = nn.Sequential(FDConv2d(32, 48, 3, padding=1, num_kernels=8))
    (cost,) = cost_by_stage(network, (torch.randn(1, 32, 6, 5),))
    assert cost.operations.convolution == 6 * 5 * 48 * 32 * 9
    # Hidden vector, gates of 32, 48 and 9 values, and 8 weights of sets.
    assert cost.operations.attention == 32 * 16 + 16 * (32 + 48 + 9 + 8)
    # Real and imaginary parts of coefficients, four gates, and a convolution of 3 for local ones.
    assert cost.operations.assembling == 2 * 144 * 49 + 4 * 48 * 32 * 9 + 48 * 9 * 3 * 32


def test_attention_statistics():
    """Of layers that are not plain; a new attention weighs all sets alike."""
    plain, layer = FDConv2d(16, 32, 1), FDConv2d(32, 32, 3, num_kernels=8)
    before = copy.deepcopy(layer.state_dict())
    recorder = AttentionRecorder(nn.Sequential(plain, layer))
    with recorder.recording():
        recorder.model(torch.randn(4, 16, 6, 5))
    (result,) = recorder.results()
    assert (result.layer, result.mean.shape, result.count) == ('1', (1, 8), 4)
    np.testing.assert_allclose(result.mean, 1 / 8, rtol=1e-3)
    assert result.entropy == pytest.approx(1, abs=1e-3)
    # The run itself is the only batch that batch norm has seen.
    batches = 'KSM_Global.bn.num_batches_tracked'
    assert layer.state_dict()[batches] == before[batches] + 1


def test_layers_on_the_meta_device_leave_no_trace():
    with torch.device('meta'):
        layer = FDConv2d(48, 32, 3, padding=1, num_kernels=8)
    assert layer(torch.empty(2, 48, 6, 6, device='meta')).shape == (2, 32, 6, 6)
    assert FDConv2d(48, 32, 3, padding=1, num_kernels=8)(torch.randn(2, 48, 6, 6)).isfinite().all()


def test_bands_are_not_part_of_the_kernels():
    assert not FDConv2d(32, 32, 3, num_kernels=8).has_kernels
    assert FDConv2d(32, 32, 3, num_kernels=8, bands=()).has_kernels
