"""The routes that compute a KW layer: what PyTorch's users do with them, and what they keep."""

import math

import pytest
import torch

from mmkw.analysis import kept_memory
from mmkw.kernel_warehouse import KWConv2d, KWLinear, assembly, lean, set_temperature

LAYERS = {
    'dense': lambda: KWConv2d(16, 32, 3, stride=2, padding=1, cell_ratio=0.5),
    'pointwise': lambda: KWConv2d(16, 32, 1, stride=2, cell_ratio=0.5),
    'depthwise': lambda: KWConv2d(16, 16, 3, padding=1, groups=16, bias=False),
    'linear': lambda: KWLinear(16, 32, cell_ratio=0.5),
}


def make(kind, **kwargs):
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(**kwargs)
    set_temperature(layer, 0.3)
    shape = (3, 5, 16) if kind == 'linear' else (3, 16, 9, 10)
    return layer, torch.randn(shape, **kwargs).requires_grad_()


def run(layer, x, route):
    """Output and all gradients of one forward and backward pass."""
    with assembly.forced_route(route):
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
    return [y.detach(), x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]


def assert_close(actual, expected, **tolerances):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerances)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
def test_float32_equals_the_reference(kind):
    layer, x = make(kind)
    assert_close(run(layer, x, 'lean'), run(layer, x, 'reference'), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', LAYERS)
def test_without_onednn(kind, monkeypatch):
    layer, x = make(kind)
    expected = run(layer, x, 'lean')
    monkeypatch.setattr(lean, '_HAS_ONEDNN', False)
    assert_close(run(layer, x, 'lean'), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
def test_gradcheck(kind):
    layer, x = make(kind, dtype=torch.float64)
    layer.eval()
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    inputs = (x[..., :3, :] if kind == 'linear' else x[..., :4, :3]).detach().requires_grad_()
    with assembly.forced_route('lean'):
        assert torch.autograd.gradcheck(function, (inputs, *parameters.values()), fast_mode=True)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(kind, dtype):
    """Low precision in the forward and backward pass, gradients of the parameters in float32."""
    layer, x = make(kind)
    with torch.autocast('cpu', dtype=dtype):
        lean, reference = run(layer, x, 'lean'), run(layer, x, 'reference')
    assert lean[0].dtype == dtype
    assert {gradient.dtype for gradient in lean[1:]} == {torch.float32}
    exact = run(layer, x, 'reference')
    for value, other, true in zip(lean, reference, exact):
        error, usual = (value - true).norm() / true.norm(), (other - true).norm() / true.norm()
        assert error < max(1.5 * usual, 4 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', ['dense', 'pointwise', 'depthwise'])
def test_channels_last(kind):
    layer, x = make(kind)
    expected = run(layer, x, 'reference')
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    actual = run(layer, x, 'lean')
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    if kind != 'depthwise':
        assert actual[0].is_contiguous(memory_format=torch.channels_last)


def kept_bytes(layer, x):
    """What autograd keeps for the backward pass, but for parameters and the input."""
    return kept_memory(lambda: layer(x).sum(), (x, *layer.parameters(), *layer.buffers()))


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
def test_lean_route_keeps_no_kernels(kind):
    layer, x = make(kind)
    kernels = 4 * len(x) * math.prod(layer.kernel_shape)
    with assembly.forced_route('reference'):
        reference = kept_bytes(layer, x)
    with assembly.forced_route('lean'):
        assert kept_bytes(layer, x) <= reference - kernels


@pytest.mark.parametrize('kind', LAYERS)
def test_compiles_without_graph_breaks(kind):
    layer, x = make(kind)
    layer.eval()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', LAYERS)
def test_function_transforms(kind):
    """Gradients of each sample, by vmap over grad, against a loop."""
    layer, x = make(kind)
    layer.eval()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x.detach())
    for i, sample in enumerate(x.detach()):
        expected = run(layer, sample[None].clone().requires_grad_(), 'lean')[2:]
        for gradient, one in zip(per_sample.values(), expected):
            torch.testing.assert_close(gradient[i], one, rtol=1e-4, atol=1e-4)


def test_second_derivatives_need_the_reference():
    layer, x = make('dense', dtype=torch.float64)
    layer.eval()
    with assembly.forced_route('lean'):
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='once_differentiable'):
            gradient.sum().backward()
    with assembly.forced_route('reference'):
        inputs = x[..., :3, :3].detach().requires_grad_()
        assert torch.autograd.gradgradcheck(layer, (inputs,), fast_mode=True)


@pytest.mark.usefixtures('blocks')
def test_frozen_inputs_and_parameters():
    layer, x = make('dense')
    _, x_gradient, *gradients = run(layer, x, 'lean')
    layer.zero_grad()
    with assembly.forced_route('lean'):
        layer(x.detach()).square().sum().backward()
        assert_close([p.grad for p in layer.parameters()], gradients)
        layer.requires_grad_(False)
        (only,) = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(only, x_gradient)
        assert not layer(x.detach()).requires_grad


def test_training_after_inference_mode():
    """What a route keeps between calls is no inference tensor."""
    layer, x = make('dense')
    assembly._links.cache_clear()
    with assembly.forced_route('responses'):
        with torch.inference_mode():
            expected = layer(x)
        y = layer(x)
        y.sum().backward()
    torch.testing.assert_close(y.detach(), expected.clone())


def test_route_is_restored_and_named():
    layer, x = make('dense')
    with pytest.raises(RuntimeError, match='stop'), assembly.forced_route('reference'):
        raise RuntimeError('stop')
    kernels = 4 * len(x) * math.prod(layer.kernel_shape)
    assert kept_bytes(layer, x) < kernels, 'not the reference any more'
    message = r"one of \('reference', .* got 'fast'"
    with pytest.raises(ValueError, match=message), assembly.forced_route('fast'):
        pass


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_tracing_records_plain_operations():
    layer, x = make('dense')
    layer.eval()
    traced = torch.jit.trace(layer, x)
    assert 'PythonOp' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-5)
