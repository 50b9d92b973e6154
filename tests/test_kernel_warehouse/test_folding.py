"""Attentions folded into the cells: the same outputs, and clear ends."""

import copy
import pickle
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from torch.nn.utils import prune

from mmkw.methods import set_temperature
from mmkw.methods.kernel_warehouse import (
    KWConv1d,
    KWConv2d,
    KWLinear,
    fold_attentions,
    unfold_attentions,
)
from mmkw.openmmlab.backbones import KWResNet
from mmkw.ops import forced_route

LAYERS = {
    'dense': lambda: KWConv2d(16, 32, 3, stride=2, padding=1, cell_ratio=0.5),
    'whole kernels': lambda: KWConv2d(8, 16, 3, cell_ratio=0.5, spatial_partition=False),
    'pointwise': lambda: KWConv2d(16, 32, 1, stride=2, budget=4, cell_ratio=0.5, bias=False),
    'depthwise': lambda: KWConv2d(16, 16, 3, padding=1, groups=16, budget=4),
    'grouped': lambda: KWConv2d(16, 32, 3, padding='same', groups=2),
    '1d': lambda: KWConv1d(16, 8, 3, padding=1, padding_mode='circular'),
    'linear': lambda: KWLinear(16, 32, cell_ratio=0.5),
}


def make(kind, dtype=torch.float64):
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(dtype)
    # Biases start at 0, where a constant term would go unnoticed.
    for parameter in layer.attention.parameters():
        torch.nn.init.normal_(parameter)
    shape = {'1d': (5, 16, 9), 'linear': (5, 7, 16), 'whole kernels': (5, 8, 9, 7)}
    x = torch.randn(shape.get(kind, (5, 16, 9, 7)), dtype=dtype)
    layer(x)
    return layer.eval(), x


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_equals_mixing_the_cells(kind, dtype, tolerance):
    layer, x = make(kind, dtype)
    expected = layer(x)
    layer.fold_attention()
    scale = expected.abs().max().item()
    for route in (nullcontext(), forced_route('reference')):
        with route:
            actual = layer(x)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)
    assert layer(x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize('kind', ['dense', 'pointwise', 'linear'])
def test_gradients_of_the_input(kind):
    """As class activation maps need them."""
    layer, x = make(kind, torch.float32)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    with torch.inference_mode():
        layer.fold_attention()
    (actual,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.newer_torch
def test_channels_last_autocast_and_compiling():
    layer, x = make('dense', torch.float32)
    expected = layer(x)
    layer.fold_attention()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-3)
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() < 0.02 * expected.norm()


def test_network():
    """Budget 4: the layers whose warehouse is large beside their hidden vector, and only those."""
    torch.manual_seed(0)
    network = KWResNet(50, budget=4, base_channels=32).train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(x)
        network.eval()
        expected = network(x)[-1]
        names = network.state_dict().keys()
        added = fold_attentions(network, min_saving=16)
        assert 0 < len(added) < 52
        for name, layer in network.named_modules():
            if isinstance(layer, KWConv2d):
                hidden = max(layer.in_channels // 16, 16)
                assert (name in added) == (layer.warehouse.cells.shape[0] >= 16 * (hidden + 1))
        name = 'layer3.1.conv2'
        assert added[name] == 4 * 9 * 128 * 128 * (16 + 1)
        torch.testing.assert_close(network(x)[-1], expected, rtol=1e-4, atol=1e-4)
        assert network.state_dict().keys() == names
        torch.testing.assert_close(copy.deepcopy(network)(x)[-1], expected, rtol=1e-4, atol=1e-4)
        unfold_attentions(network)
        assert torch.equal(network(x)[-1], expected)


def test_basis_ratio():
    network = KWResNet(50, 0.5, attention=dict(basis_ratio=1 / 8), base_channels=32).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)[-1]
        assert fold_attentions(network)
        torch.testing.assert_close(network(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_training_ends_it():
    layer, x = make('dense')
    expected = layer(x)
    layer.fold_attention()
    layer.train()
    assert layer.basis is None
    layer.eval()
    assert torch.equal(layer(x), expected)


def unfolded(layer, x):
    """The output of a copy that is not folded."""
    layer = copy.deepcopy(layer)
    layer.unfold_attention()
    return layer(x)


CHANGES = {
    'in place': lambda layer, other: layer.warehouse.cells.data.copy_(other.warehouse.cells),
    'counted': lambda layer, other: layer.warehouse.cells.copy_(other.warehouse.cells),
    'a bias': lambda layer, other: layer.attention.fc2.bias.data.copy_(other.attention.fc2.bias),
    'load': lambda layer, other: layer.load_state_dict(other.state_dict()),
    'assign': lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    'replaced': lambda layer, other: setattr(layer.warehouse, 'cells', other.warehouse.cells),
    'set data': lambda layer, other: setattr(
        layer.warehouse.cells, 'data', other.warehouse.cells.data
    ),
    'swap': lambda layer, other: swap(layer, other),
    'prune': lambda layer, other: prune.l1_unstructured(layer.warehouse, 'cells', 0.5),
}


def swap(layer, other):
    """As MMEngine's EMAHook puts averages in the place of weights."""
    for a, b in zip(layer.parameters(), other.parameters()):
        kept = a.data.clone()
        a.data.copy_(b.data)
        b.data.copy_(kept)


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize(
    'copied', [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=['itself', 'deepcopy', 'pickle'],
)  # fmt: skip
@torch.no_grad()
def test_folds_anew_when_weights_change(change, copied):
    layer, x = make('dense')
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    layer.fold_attention()
    before = layer(x)
    layer = copied(layer)
    assert layer.is_folded
    torch.testing.assert_close(layer(x), before)
    CHANGES[change](layer, other)
    y = layer(x)
    assert not torch.allclose(y, before)
    torch.testing.assert_close(y, unfolded(layer, x))


@torch.no_grad()
def test_functional_call_on_a_folded_layer():
    layer, x = make('dense')
    expected = layer(x)
    layer.fold_attention()
    doubled = {'warehouse.cells': 2 * layer.warehouse.cells}
    y = torch.func.functional_call(layer, doubled, (x,))
    bias = layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(y, 2 * (expected - bias) + bias)
    torch.testing.assert_close(layer(x), expected)


def test_averaged_weights_of_an_ema_hook():
    """The hook swaps weights by writes that PyTorch does not count."""
    layer, x = make('dense', torch.float32)
    model = torch.nn.Sequential(layer)
    hook = EMAHook()
    runner = SimpleNamespace(model=model)
    hook.before_run(runner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        layer.fold_attention()
        trained = layer(x)
        hook._swap_ema_parameters()
        torch.testing.assert_close(layer(x), unfolded(layer, x))
        assert not torch.allclose(layer(x), trained)
        hook._swap_ema_parameters()
        torch.testing.assert_close(layer(x), trained)


def test_temperature_of_a_folded_layer():
    layer, x = make('dense')
    layer.fold_attention()
    set_temperature(layer, 0.5)
    with pytest.raises(ValueError, match='at temperature 0 only, but KWConv2d is at 0.5'):
        layer(x)
    unfold_attentions(layer)
    layer(x)


def test_errors():
    layer, _ = make('dense')
    set_temperature(layer, 0.25)
    with pytest.raises(ValueError, match='temperature 0 only, but KWConv2d is at 0.25'):
        layer.fold_attention()
    with pytest.raises(RuntimeError, match='KWConv2d is in training mode'):
        layer.train().fold_attention()
    with pytest.raises(RuntimeError, match='no warehouse yet'):
        KWConv2d(4, 4, 1, budget=None).eval().fold_attention()
    with pytest.raises(ValueError, match='Linear has no KernelWarehouse layers'):
        fold_attentions(torch.nn.Linear(2, 2))
    for value in (-1, 'all', float('nan')):
        with pytest.raises(ValueError, match='min_saving must be a number of at least 0'):
            fold_attentions(layer, min_saving=value)
