"""Every dynamic layer on a GPU, against float64 on the CPU: `pytest -m gpu`.

What does not need a GPU runs on the CPU, too, so that these tests are known to work.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkw.methods import METHODS, set_temperature
from mmkw.methods.kernel_warehouse import fold_attentions
from mmkw.openmmlab.backbones import KWResNet
from mmkw.ops import fused_attention, mixture_attention

GPU = pytest.param(
    'cuda',
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU'),
    ],
)
on_every_device = pytest.mark.parametrize('device', ['cpu', GPU])
on_gpus = pytest.mark.parametrize('device', [GPU])
# How numbers are rounded, and how far results may be from float64, relative to the largest.
PRECISIONS = {
    'float32': (None, 1e-4),
    'tf32': (None, 5e-2),
    'bfloat16': (torch.bfloat16, 1e-1),
    'float16': (torch.float16, 5e-2),
}


def make(method, kernel_size):
    torch.manual_seed(0)
    kind, temperatures = METHODS[method].layers[2], METHODS[method].temperature_range
    layer = kind(16, 32, kernel_size, stride=2, padding=kernel_size // 2)
    if temperatures is not None:
        set_temperature(layer, 0.3 if temperatures.high == 1 else 2.5)
    # Batch norm over a batch of four would enlarge the error of its input.
    return layer.eval()


def run(layer, x, precision=None):
    """Output, and the gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    context = nullcontext() if precision is None else torch.autocast(x.device.type, precision)
    with context:
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    (y * weights.to(y)).sum().backward()
    parameters = [p.grad for p in layer.parameters() if p.grad is not None]
    return [value.detach().cpu().double() for value in (y, x.grad, *parameters)]


def tiny_network():
    torch.manual_seed(0)
    return KWResNet(18, budget=1, stem_channels=16, base_channels=16)


@pytest.fixture
def tf32(precision):
    """Whether float32 products are rounded to TF32 on the way."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == 'tf32'
    yield
    for backend, value in zip(backends, before):
        backend.allow_tf32 = value


@on_every_device
@pytest.mark.usefixtures('tf32')
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'precision',
    [
        pytest.param(name, marks=pytest.mark.newer_torch if name == 'float16' else [])
        for name in PRECISIONS
    ],
)
@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('method', METHODS)
def test_layers_and_gradients(method, kernel_size, precision, layout, device):
    dtype, tolerance = PRECISIONS[precision]
    layer = make(method, kernel_size)
    x = torch.randn(4, 16, 12, 12)
    expected = run(copy.deepcopy(layer).double(), x.double())
    found = run(layer.to(device), x.to(device, memory_format=layout), dtype)
    assert len(found) == len(expected)
    for value, exact in zip(found, expected):
        assert (value - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1e-3)


@on_every_device
def test_folded_networks(device):
    network = tiny_network().eval().to(device)
    set_temperature(network, 0)
    x = torch.randn(2, 3, 64, 64, device=device)
    with torch.no_grad():
        expected = network(x)[-1]
        fold_attentions(network)
        torch.testing.assert_close(network(x)[-1], expected, rtol=1e-3, atol=1e-4)


@on_gpus
def test_training_with_a_gradient_scaler(device):
    network = tiny_network().to(device, memory_format=torch.channels_last)
    head = nn.Linear(128, 2).to(device)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    scaler = torch.amp.GradScaler(device)
    x, labels = torch.randn(8, 3, 64, 64, device=device), torch.arange(8, device=device) % 2
    for step in range(30):
        set_temperature(network, max(1 - step / 15, 0))
        with torch.autocast(device, torch.float16):
            loss = F.cross_entropy(head(network(x)[-1].mean((2, 3))), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert loss < 0.3


@on_gpus
def test_training_waits_for_nothing_on_the_gpu(device):
    """Neither layers nor the temperature make the CPU wait for the GPU."""
    network = tiny_network().to(device)
    x = torch.randn(4, 3, 64, 64, device=device)
    network(x)[-1].sum().backward()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for temperature in (0.5, 0):
            set_temperature(network, temperature)
            network(x)[-1].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@on_gpus
def test_cuda_graphs(device):
    network = tiny_network().eval().to(device)
    set_temperature(network, 0)
    x = torch.randn(4, 3, 64, 64, device=device)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            network(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = network(x)[-1]
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(y, network(x)[-1], rtol=1e-4, atol=1e-5)


@on_gpus
def test_compiled_networks(device):
    network = tiny_network().eval().to(device)
    set_temperature(network, 0)
    x = torch.randn(4, 3, 64, 64, device=device)
    with torch.no_grad():
        compiled = torch.compile(network)(x)[-1]
        torch.testing.assert_close(compiled, network(x)[-1], rtol=1e-3, atol=1e-4)


@on_gpus
def test_fused_attention(device):
    """The kernels of Triton, against the operations of PyTorch."""
    torch.manual_seed(0)
    logits = torch.randn(8, 9, 41, device=device, requires_grad=True)
    beta, tau = torch.eye(9, 40, device=device), torch.tensor(0.3, device=device)
    weights = torch.randn(8, 9, 40, device=device)
    results = []
    for context in (nullcontext(), fused_attention()):
        with context:
            alpha = mixture_attention(logits, beta, tau)
        results.append((alpha, *torch.autograd.grad((alpha * weights).sum(), logits)))
    torch.testing.assert_close(results[1], results[0])
