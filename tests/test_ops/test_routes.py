"""The routes that compute dynamic layers: what PyTorch's users do with them, what they keep."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from mmkw.analysis import kept_memory
from mmkw.methods import set_temperature
from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear
from mmkw.ops import forced_route, kept_kernels
from mmkw.ops.bank_responses import pixel_links
from mmkw.ops.routes import choose_route

LAYERS = {
    'dense': lambda: KWConv2d(16, 32, 3, stride=2, padding=1, cell_ratio=0.5),
    'pointwise': lambda: KWConv2d(16, 32, 1, stride=2, cell_ratio=0.5),
    'depthwise': lambda: KWConv2d(16, 16, 3, padding=1, groups=16, bias=False),
    'factors': lambda: KWConv2d(
        16, 32, 3, padding=1, groups=2, cell_ratio=0.5, attention=dict(od_heads=True)
    ),
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
    with forced_route(route):
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
    assert_close(run(layer, x, 'blockwise'), run(layer, x, 'reference'), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize(
    'dtype',
    [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.newer_torch)],
)
def test_autocast(kind, dtype):
    """Low precision in the forward and backward pass, gradients of the parameters in float32."""
    layer, x = make(kind)
    with torch.autocast('cpu', dtype=dtype):
        ours, reference = run(layer, x, 'blockwise'), run(layer, x, 'reference')
    assert ours[0].dtype == dtype
    assert {gradient.dtype for gradient in ours[1:]} == {torch.float32}
    exact = run(layer, x, 'reference')
    for value, other, true in zip(ours, reference, exact):
        error, usual = (value - true).norm() / true.norm(), (other - true).norm() / true.norm()
        assert error < max(1.5 * usual, 4 * torch.finfo(dtype).eps)


def kept_bytes(layer, x):
    """What autograd keeps for the backward pass, but for parameters and the input."""
    return kept_memory(lambda: layer(x).sum(), (x, *layer.parameters(), *layer.buffers()))


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
def test_blockwise_route_keeps_no_kernels(kind):
    layer, x = make(kind)
    kernels = 4 * len(x) * math.prod(layer.kernel_shape)
    with forced_route('reference'):
        reference = kept_bytes(layer, x)
    with forced_route('blockwise'), kept_kernels(0):
        assert kept_bytes(layer, x) <= reference - kernels


@pytest.mark.newer_torch
@pytest.mark.parametrize('kind', LAYERS)
def test_compiles_once_for_batch_sizes(kind):
    layer, x = make(kind)
    layer.eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for batch in (x, x[:2], x.repeat(3, *[1] * (x.dim() - 1))):
        torch.testing.assert_close(compiled(batch), layer(batch), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


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
        expected = run(layer, sample[None].clone().requires_grad_(), 'blockwise')[2:]
        for gradient, one in zip(per_sample.values(), expected):
            torch.testing.assert_close(gradient[i], one, rtol=1e-4, atol=1e-4)


def small_inputs(kind, x):
    return (x[..., :3, :] if kind == 'linear' else x[..., :4, :3]).detach().requires_grad_()


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('kind', LAYERS)
def test_first_and_second_derivatives(kind):
    """With respect to the input and all parameters."""
    layer, x = make(kind, dtype=torch.float64)
    layer.eval()
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    inputs = (small_inputs(kind, x), *parameters.values())
    with forced_route('blockwise'):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize('kind', LAYERS)
def test_products_with_derivatives(kind):
    """Users' ways to second and forward derivatives, on whatever route is chosen by default."""
    layer, x = make(kind, dtype=torch.float64)
    layer.eval()
    x = small_inputs(kind, x)
    v = torch.randn_like(x)

    def loss(x):
        return layer(x).square().sum()

    def derivatives():
        functional = torch.autograd.functional
        return [
            functional.hvp(loss, x, v)[1],
            functional.vhp(loss, x, v)[1],
            functional.jvp(layer, x, v)[1],
            torch.func.jvp(layer, (x.detach(),), (v,))[1],
            torch.func.jvp(torch.func.grad(loss), (x.detach(),), (v,))[1],
            torch.func.hessian(loss)(x.detach()).flatten(x.dim()).matmul(v.flatten()),
            forward_mode(layer, x.detach(), v),
        ]

    with forced_route('reference'):
        expected = derivatives()
    for actual, true in zip(derivatives(), expected):
        torch.testing.assert_close(actual, true)


def forward_mode(function, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent


@pytest.mark.usefixtures('blocks')
def test_frozen_inputs_and_parameters():
    layer, x = make('dense')
    _, x_gradient, *gradients = run(layer, x, 'blockwise')
    layer.zero_grad()
    with forced_route('blockwise'):
        layer(x.detach()).square().sum().backward()
        assert_close([p.grad for p in layer.parameters()], gradients)
        layer.requires_grad_(False)
        (only,) = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(only, x_gradient)
        assert not layer(x.detach()).requires_grad


def test_training_after_inference_mode():
    """What a route keeps between calls is no inference tensor."""
    layer, x = make('dense')
    pixel_links.cache_clear()
    with forced_route('bank_responses'):
        with torch.inference_mode():
            expected = layer(x)
        y = layer(x)
        y.sum().backward()
    torch.testing.assert_close(y.detach(), expected.clone())


def test_route_is_restored_and_named():
    layer, x = make('dense')
    with pytest.raises(RuntimeError, match='stop'), forced_route('reference'):
        raise RuntimeError('stop')
    kernels = 4 * len(x) * math.prod(layer.kernel_shape)
    assert kept_bytes(layer, x) < kernels, 'not the reference any more'
    message = r"one of \('reference', .* got 'fast'"
    with pytest.raises(ValueError, match=message), forced_route('fast'):
        pass


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_tracing_records_plain_operations():
    # The trace takes another route than the layer that it is compared with, also by PyTorch's
    # own check, whose 1e-5 the rounding of float32 can exceed.
    layer, x = make('dense', dtype=torch.float64)
    layer.eval()
    traced = torch.jit.trace(layer, x)
    assert 'PythonOp' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize(
    ('size', 'groups', 'spatial', 'route'),
    [
        ((1, 1), 1, True, 'bank_responses'),
        ((4, 4), 1, True, 'bank_responses'),  # 16 pixels, 9 positions, 1 output group
        ((4, 5), 1, True, 'blockwise'),
        ((1, 1), 2, True, 'blockwise'),  # groups
        ((1, 1), 1, False, 'blockwise'),  # cells that cover the kernel
    ],
)
def test_choice_of_the_route(size, groups, spatial, route):
    layer = KWConv2d(4, 4, 3, padding=1, groups=groups, spatial_partition=spatial).eval()
    x = torch.zeros(2, 4, *size)
    assert choose_route(x, layer.mix(layer.pool(x)), groups) == route
    with forced_route('bank_responses'):
        forced = choose_route(x, layer.mix(layer.pool(x)), groups)
    assert forced == ('bank_responses' if groups == 1 and spatial else 'reference')


@pytest.mark.parametrize('kind', LAYERS)
def test_kept_kernels(kind):
    """Kernels that are kept change no gradient, and take their memory."""
    layer, x = make(kind, dtype=torch.float64)
    kernels = 8 * len(x) * math.prod(layer.kernel_shape)
    with kept_kernels(0):
        expected, without = run(layer, x, 'blockwise'), kept_bytes(layer, x)
    with kept_kernels(math.inf), forced_route('blockwise'):
        assert_close(run(layer, x, 'blockwise'), expected)
        assert kept_bytes(layer, x) == without + kernels
    with pytest.raises(ValueError, match='share must be a number of at least 0, but got -1'):
        kept_kernels(-1).__enter__()
