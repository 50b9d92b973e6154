"""MMCV merges batch norms into the plain convolutions that stay beside dynamic layers."""

import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS
from torch import nn

import mmkw  # noqa: F401

RESNET = dict(depth=18, base_channels=16, stem_channels=16)
# How many convolutions have to stay plain so that there is something to merge.
NETWORKS = {
    'KWResNet': (dict(type='KWResNet', **RESNET), 1),
    'KWMobileNetV2': (dict(type='KWMobileNetV2', widen_factor=0.5, budget='1/2'), 27),
    'KWBackbone': (
        dict(
            type='KWBackbone',
            backbone=dict(type='mmpretrain.ShuffleNetV2', widen_factor=0.5),
            input_shape=(3, 64, 64),
        ),
        10,
    ),
    'DynamicBackbone': (
        dict(
            type='DynamicBackbone',
            backbone=dict(type='mmpretrain.ResNet', **RESNET),
            layer=dict(type='ODConv2d'),
            layers=['layer*.conv2'],
        ),
        12,
    ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_fused_network_computes_the_same(name):
    torch.manual_seed(0)
    config, least = NETWORKS[name]
    network = MODELS.build(config)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.running_var, norm.weight):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (norm.running_mean, norm.bias):
                nn.init.normal_(value, std=0.3)
    network.eval()
    fused = fuse_conv_bn(copy.deepcopy(network))
    merged = [module for module in fused.modules() if isinstance(module, nn.Identity)]
    assert len(merged) >= least
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), network(x), rtol=1e-4, atol=1e-5)
