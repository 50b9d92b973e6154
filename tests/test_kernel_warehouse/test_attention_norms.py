"""``norm_layer`` of the attentions, by name and as the ``norm_cfg`` of a network."""

import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkw.methods.kernel_warehouse import KWLayer
from mmkw.openmmlab.backbones import KWResNet


def layer_with(norm_layer):
    torch.manual_seed(0)
    return build_conv_layer(dict(type='KWConv2d', attention=dict(norm_layer=norm_layer)), 8, 8, 3)


@MODELS.register_module(force=True)
class Halving(nn.Module):
    """A norm of someone's own."""

    def __init__(self, width, factor=0.5, eps=1e-5):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def shown(value):
    return 'callable' if callable(value) else str(value)


@pytest.mark.parametrize(
    ('norm_cfg', 'same'),
    [
        (dict(type='BN', requires_grad=True), 'BatchNorm1d'),
        (dict(type='BN2d', eps=0.1), lambda width: nn.BatchNorm1d(width, eps=0.1)),
        (dict(type='SyncBN'), 'SyncBatchNorm'),
        (dict(type='GN', num_groups=4), lambda width: nn.GroupNorm(4, width)),
        (dict(type='LN'), 'LayerNorm'),
        (dict(type='mmpretrain.LN2d'), 'LayerNorm'),
        (dict(type='Halving', factor=0.25), lambda width: Halving(width, 0.25)),
        (dict(type=nn.LayerNorm, eps=0.1), lambda width: nn.LayerNorm(width, eps=0.1)),
    ],
    ids=shown,
)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_norm_cfg(norm_cfg, same, training):
    layer, expected = layer_with(norm_cfg).train(training), layer_with(same).train(training)
    assert layer.state_dict().keys() == expected.state_dict().keys()
    x = torch.randn(4, 8, 6, 6)
    torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize('trained', [True, False])
def test_norm_cfg_of_the_network(trained):
    """Frozen where the config says so, as in MMDetection's Caffe models."""
    norm_cfg = dict(type='BN', requires_grad=trained)
    network = KWResNet(
        18,
        base_channels=16,
        stem_channels=16,
        norm_cfg=norm_cfg,
        attention=dict(norm_layer=norm_cfg),
    )
    attentions = [module.attention for module in network.modules() if isinstance(module, KWLayer)]
    for attention in attentions:
        assert {p.requires_grad for p in attention.norm.parameters()} == {trained}
        assert {p.requires_grad for p in attention.fc1.parameters()} == {True}
    network(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert all((attention.norm.weight.grad is not None) == trained for attention in attentions)


PLAIN = dict(type='mmpretrain.ResNet', depth=18, base_channels=16, stem_channels=16)
GROUPS = dict(attention=dict(norm_layer=dict(type='GN', num_groups=4)))


@pytest.mark.parametrize(
    'config',
    [
        dict(type='KWResNet', depth=18, **GROUPS),
        dict(type='KWConvNeXt', arch='atto', **GROUPS),
        dict(type='KWMobileNetV2', **GROUPS),
        dict(type='KWVisionTransformer', arch='deit-t', **GROUPS),
        dict(type='KWLinearClsHead', num_classes=2, in_channels=16, **GROUPS),
        dict(type='KWBackbone', backbone=PLAIN, warehouse=GROUPS),
        dict(type='KWBackbone', backbone=PLAIN, plan=dict(one=dict(layers=['layer2.*'], **GROUPS))),
        dict(
            type='DynamicBackbone',
            backbone=PLAIN,
            layer=dict(type='KWConv2d', **GROUPS),
            layers=['layer2.*'],
        ),
    ],
    ids=lambda config: config['type'],
)
def test_norm_cfg_wherever_a_config_has_attentions(config):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(config)
    layers = [module for module in network.modules() if isinstance(module, KWLayer)]
    assert layers
    for layer in layers:
        assert isinstance(layer.attention.norm, nn.GroupNorm)
        assert layer.attention.norm.num_groups == 4


@pytest.mark.parametrize(
    ('norm_layer', 'message'),
    [
        (dict(type='GN', num_groups=5), 'does not suit the 16 channels of an .* divisible'),
        (dict(type='GN'), 'num_groups is missing'),
        (dict(type='Bn'), "no norm 'Bn' is registered"),
        (dict(type='LN', epz=1), "does not suit .* argument 'epz'"),
        (dict(num_groups=4), "norm_layer must be .* norm_cfg with .*, but got {'num_groups': 4}"),
        (dict(type='IN'), 'is a norm of maps'),
        ('BatchNorm2d', 'is a norm of maps'),
        ('GroupNorm', "norm_layer='GroupNorm' does not suit the 16 channels of an attention"),
    ],
    ids=shown,
)
def test_what_no_attention_can_have(norm_layer, message):
    with pytest.raises(ValueError, match=message):
        layer_with(norm_layer)
