"""A batch of one image many times: nothing to tell apart, and no reason to diverge."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkw.methods import set_temperature
from mmkw.networks import WarehouseConfig, apply_plan


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
