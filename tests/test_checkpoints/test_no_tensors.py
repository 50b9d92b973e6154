"""Checkpoints that have something else in the place of a tensor."""

import pytest
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.backbones import ConvNeXt, ResNet, VisionTransformer

from mmkw.openmmlab.backbones import (
    KWConvNeXt,
    KWResNet,
    KWVisionTransformer,
    build_dynamic_backbone,
)

RESNET = dict(depth=18, stem_channels=8, base_channels=8)
CONVNEXT = dict(arch=dict(depths=[1] * 4, channels=[8, 16, 16, 16]))
TRANSFORMER = dict(
    arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
    img_size=32,
    patch_size=8,
)


def kw_resnet():
    return KWResNet(**RESNET)


def od_resnet():
    backbone = dict(type='mmpretrain.ResNet', **RESNET)
    return build_dynamic_backbone(backbone, dict(type='ODConv2d', num_kernels=2), ['layer*.conv?'])


@pytest.mark.parametrize(
    ('build', 'build_source', 'name'),
    [
        (kw_resnet, kw_resnet, 'warehouses.layer1.cells'),
        (kw_resnet, lambda: ResNet(**RESNET), 'layer1.0.conv2.weight'),
        (od_resnet, od_resnet, 'layer1.0.conv2.weight'),
        (
            lambda: KWConvNeXt(**CONVNEXT, blocks_per_warehouse=1),
            lambda: ConvNeXt(**CONVNEXT),
            'stages.0.0.gamma',
        ),
        (
            lambda: KWVisionTransformer(**TRANSFORMER, blocks_per_warehouse=1),
            lambda: VisionTransformer(**TRANSFORMER),
            'layers.1.attn.qkv.bias',
        ),
    ],
)
@pytest.mark.parametrize('value', ['text', None])
def test_the_error_names_the_tensor(build, build_source, name, value):
    state_dict = build_source().state_dict()
    assert name in state_dict
    state_dict[name] = value
    with pytest.raises(ValueError, match=rf'{name} of the checkpoint is of type \w+.*a tensor'):
        load_state_dict(build(), state_dict, strict=False)
