"""Counts of multiply-adds against torch's own counter, published numbers and the formula."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmkw.analysis import Operations, count_operations
from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear, fold_attentions
from mmkw.openmmlab.backbones import KWResNet
from mmkw.ops import forced_route


def multiply_adds_of_torch(run):
    """What torch counts beneath all modules; a multiply-add is two of its operations."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    'name, published',
    [('resnet18', 1.81e9), ('resnet50', 4.09e9), ('mobilenet_v2', 0.30e9)],
)
def test_networks_of_torchvision(name, published):
    with torch.device('meta'):
        network = getattr(torchvision.models, name)().eval()
        x = torch.empty(1, 3, 224, 224)
    operations = count_operations(network, lambda: network(x))
    assert operations == Operations(convolution=multiply_adds_of_torch(lambda: network(x)))
    assert operations.total == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(
    'layer, x',
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), torch.ones(2, 4, 9)),
        (nn.Conv3d(2, 3, (1, 2, 3), padding=1), torch.ones(1, 2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), torch.ones(2, 4, 5, 5)),
        (nn.Linear(5, 7), torch.ones(2, 3, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_layers(layer, x):
    operations = count_operations(layer, lambda: layer(x))
    assert operations == Operations(convolution=multiply_adds_of_torch(lambda: layer(x)))


def test_parts_of_a_kw_convolution_by_hand():
    layer = KWConv2d(8, 12, 3, padding=1, stride=2, budget=2).eval()
    x = torch.ones(5, 8, 7, 7)
    operations = count_operations(layer, lambda: layer(x))
    m, n, cell, hidden = 9, 18, 12 * 8, 16
    assert operations.convolution == 5 * 12 * 4 * 4 * (8 * 9)
    assert operations.assembling == 5 * m * n * cell
    assert operations.attention == 5 * (8 * hidden + hidden * m * (n + 1))
    assert operations.total == math.fsum(
        [operations.convolution, operations.assembling, operations.attention]
    )


@pytest.mark.parametrize('budget', [0.5, 4])
def test_kw_network_by_the_reference_route(budget):
    """Cells shared by layers, attentions with a basis, a 1 x 1 classifier."""
    backbone = KWResNet(50, budget=budget, base_channels=8, stem_channels=8)
    network = nn.Sequential(
        backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), KWLinear(256, 10)
    ).eval()
    backbone.forward = lambda x, forward=backbone.forward: forward(x)[-1]
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad(), forced_route('reference'):
        expected = multiply_adds_of_torch(lambda: network(x))
        operations = count_operations(network, lambda: network(x))
    assert operations.total == expected
    assert min(operations.assembling, operations.attention) > 0
    with torch.no_grad():
        assert count_operations(network, lambda: network(x)) == operations

    fold_attentions(network, min_saving=0)
    with torch.no_grad(), forced_route('reference'):
        folded = count_operations(network, lambda: network(x))
        assert folded.total == multiply_adds_of_torch(lambda: network(x))
    assert folded.assembling != operations.assembling


def test_an_error_leaves_nothing_behind():
    layer = nn.Linear(3, 3)

    def run():
        layer(torch.ones(2, 3))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        count_operations(layer, run)
    assert count_operations(layer, lambda: layer(torch.ones(2, 3))).total == 2 * 9
