"""Networks with shared warehouses in tools that record graphs with torch.fx."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from mmkw.methods.kernel_warehouse import KWLinear
from mmkw.networks import WarehouseConfig, apply_plan


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = resnet18()
    apply_plan(network, {'three': WarehouseConfig(['layer3.*.conv?'])})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def test_feature_extractor(network):
    seen = {}
    hook = network.layer3.register_forward_hook(lambda module, args, y: seen.update(layer3=y))
    images = torch.randn(2, 3, 64, 64)
    network(images)
    hook.remove()
    extractor = create_feature_extractor(network, ['layer3'])
    torch.testing.assert_close(extractor(images)['layer3'], seen['layer3'], rtol=0, atol=0)
    # Shared cells belong to no layer; see docs/backbones.md.
    extractor.warehouses = network.warehouses
    extractor.double()
    assert extractor(images.double())['layer3'].dtype == torch.float64


def test_efficient_batch_norm_leaves_dynamic_layers_alone(network):
    module = pytest.importorskip('mmengine.model.efficient_conv_bn_eval')
    images = torch.randn(2, 3, 64, 64)
    expected = network(images)
    calls = []
    network.layer3[0].bn1.register_forward_hook(lambda *_: calls.append('after a KW layer'))
    network.layer2[0].bn1.register_forward_hook(lambda *_: calls.append('after a plain layer'))
    module.turn_on_efficient_conv_bn_eval(network, ['layer2', 'layer3'])
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert calls == ['after a KW layer']


def test_linear_layer_is_one_node():
    network = nn.Sequential(KWLinear(8, 4), nn.ReLU()).eval()
    graph = torch.fx.symbolic_trace(network)
    for shape in ((2, 8), (2, 3, 8)):
        x = torch.randn(*shape)
        torch.testing.assert_close(graph(x), network(x), rtol=0, atol=0)
