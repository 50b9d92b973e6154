"""Every method compiled, in training and evaluation, beside the same layer run as it is."""

import copy

import pytest
import torch

from mmkw.methods import METHODS

CONVOLUTIONS = [(method, layers.layers[2]) for method, layers in METHODS.items()]
inductor = pytest.param('inductor', marks=pytest.mark.slow)


@pytest.mark.parametrize('backend', ['eager', 'aot_eager', inductor])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('conv', [c for _, c in CONVOLUTIONS], ids=[m for m, _ in CONVOLUTIONS])
def test_compiled_layers_equal_eager_ones(conv, training, stride, backend):
    torch.manual_seed(0)
    layer = conv(64, 64, 3, stride=stride, padding=1).double().train(training)
    x = torch.randn(4, 64, 8, 8, dtype=torch.float64)
    results = []
    torch._dynamo.reset()
    for module in (copy.deepcopy(layer), torch.compile(copy.deepcopy(layer), backend=backend)):
        images = x.clone().requires_grad_()
        y = module(images)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        inputs = [images, *module.parameters()]
        results.append((y, *torch.autograd.grad((y * weights).sum(), inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
