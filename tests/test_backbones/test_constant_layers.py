"""Layers that a network starts at zero on purpose stay as they are."""

import mmdet.models  # noqa: F401
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

import mmkw  # noqa: F401

DCN = dict(deform_groups=1, fallback_on_stride=False)
NON_LOCAL = dict(
    cfg=dict(type='NonLocal2d'), stages=(False, True, False, False), position='after_conv2'
)
NETWORKS = {
    'DCN': dict(dcn=dict(type='DCN', **DCN), stage_with_dcn=(False, False, True, False)),
    'DCNv2': dict(dcn=dict(type='DCNv2', **DCN), stage_with_dcn=(False, False, True, False)),
    'NonLocal2d': dict(plugins=[NON_LOCAL]),
}


def build(**config):
    torch.manual_seed(0)
    network = MODELS.build(config)
    MMLogger.get_current_instance().setLevel('ERROR')
    network.init_weights()
    network.eval()  # of which MMDetection's returns nothing
    return network


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_patterns_pass_over_offsets(kind):
    plain = build(type='mmdet.ResNet', depth=50, **NETWORKS[kind])
    network = build(
        type='DynamicBackbone',
        backbone=dict(type='mmdet.ResNet', depth=50, **NETWORKS[kind]),
        layer=dict(type='ODConv2d'),
        layers=['layer3.*'],
    )
    offsets = [name for name in plain.state_dict() if 'conv_offset' in name]
    assert offsets
    for name in offsets:
        assert torch.equal(network.state_dict()[name] == 0, plain.state_dict()[name] == 0), name


def test_a_layer_that_is_named_is_replaced_with_a_warning():
    name = 'layer2.0.nonlocal_block.conv_out.conv'
    backbone = dict(type='mmdet.ResNet', depth=50, **NETWORKS['NonLocal2d'])
    config = dict(type='DynamicBackbone', backbone=backbone, layer=dict(type='ODConv2d'))
    with pytest.raises(ValueError, match=f'starts at a constant.*{name}'):
        MODELS.build(dict(config, layers=['layer2.0.nonlocal_block.conv_out*']))
    with pytest.warns(UserWarning, match='starts these layers at a constant on purpose'):
        network = MODELS.build(dict(config, layers=[name]))
    assert type(network.get_submodule(name)).__name__ == 'ODConv2d'


def test_convolutions_of_other_classes_are_named():
    backbone = dict(
        type='mmdet.DetectoRS_ResNet',
        depth=50,
        conv_cfg=dict(type='ConvAWS'),
        sac=dict(type='SAC', use_deform=True),
        stage_with_sac=(False, True, True, True),
    )
    layer = dict(type='ODConv2d')
    with pytest.raises(ValueError, match='it has .*ConvAWS2d, .*SAConv2d, which compute'):
        MODELS.build(
            dict(type='DynamicBackbone', backbone=backbone, layer=layer, layers=['layer1*conv1'])
        )
    with pytest.raises(ValueError, match='a ConvAWS2d is no plain convolution'):
        MODELS.build(dict(type='KWBackbone', backbone=backbone))
