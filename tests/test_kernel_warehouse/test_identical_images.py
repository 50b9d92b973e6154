"""A batch of one image many times: nothing to tell apart, and no reason to diverge."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkw.methods import set_temperature
from mmkw.networks import WarehouseConfig, apply_plan
from mmkw.ops import mixture_attention


def deep_network(depth=8, width=16):
    layers = []
    for index in range(depth):
        layers += [
            nn.Conv2d(3 if index == 0 else width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
    convolutions = [str(3 * index) for index in range(1, depth)]
    return apply_plan(network, {'all': WarehouseConfig(convolutions, budget=1)})


@pytest.mark.parametrize('begin', [0, 1])
@pytest.mark.parametrize('lr', [0.02, 0.1])
def test_training_on_identical_images(begin, lr):
    """At once at temperature 0, and after annealing."""
    torch.manual_seed(0)
    network = deep_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    images = torch.randn(1, 3, 8, 8).expand(8, -1, -1, -1)
    labels = torch.arange(8) % 2
    for step in range(30):
        set_temperature(network, max(begin - step / 15, 0))
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf)
        assert norm < 1000, f'step {step}'
        optimizer.step()
    assert loss < 0.8


def test_training_on_two_images_after_identical_ones_learns():
    """No layer is dead after images that said nothing."""
    torch.manual_seed(0)
    network = deep_network(depth=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    images = torch.randn(2, 3, 8, 8)
    labels = torch.arange(8) % 2
    for step in range(60):
        batch = images[:1].expand(8, -1, -1, -1) if step < 20 else images[labels]
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize('scale', [0, 1e-6, 1e-3, 1e-2, 1])
def test_values_are_those_of_the_equation_and_gradients_where_logits_are_large(scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(3, 2, 5, dtype=torch.float64)).requires_grad_()
    beta = torch.zeros(2, 4, dtype=torch.float64)
    tau = torch.tensor(0.3, dtype=torch.float64)

    def by_hand(z):
        return 0.3 * beta + 0.7 * z[..., :-1] / (z.abs().sum(-1, keepdim=True) + 1e-3)

    alpha = mixture_attention(logits, beta, tau)
    torch.testing.assert_close(alpha, by_hand(logits), rtol=1e-14, atol=1e-15)
    with torch.no_grad():
        assert torch.equal(alpha, mixture_attention(logits, beta, tau))
    direction = torch.randn(3, 2, 4, dtype=torch.float64)
    (grad,) = torch.autograd.grad((alpha * direction).sum(), logits)
    (exact,) = torch.autograd.grad((by_hand(logits) * direction).sum(), logits)
    if scale == 1:
        torch.testing.assert_close(grad, exact, rtol=1e-12, atol=1e-13)
    else:
        assert grad.abs().max() < 30
        assert (grad.sign() == exact.sign()).all()
