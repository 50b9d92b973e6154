"""``conv_cfg=dict(type='KWConv2d')`` in modules of OpenMMLab that know nothing of it.

The contract of all methods has it in a neck.
"""

import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import ResNet
from torch import nn

import mmkw
from mmkw import KWConv2d
from mmkw.methods.kernel_warehouse import Warehouse

CONV_CFG = dict(type='KWConv2d', budget=1)


@pytest.fixture(autouse=True)
def scope():
    """Heads look up their parts in MMDetection's, whatever scope another test has left."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def kw_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, KWConv2d)]


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='KWResNet', depth=18, conv_cfg=dict(type='KWConv2D')),
        dict(
            type='KWBackbone',
            backbone=dict(type='mmpretrain.ResNet', depth=18, conv_cfg=dict(type='KWConv2D')),
        ),
        dict(
            type='DynamicBackbone',
            backbone=dict(type='mmpretrain.ResNet', depth=18, conv_cfg=dict(type='KWConv2D')),
            layer=dict(type='ODConv2d'),
            layers=['layer*.conv?'],
        ),
    ],
)
def test_misspelt_type(backbone):
    with pytest.raises(
        ValueError, match="conv_cfg has no type 'KWConv2D'; did you mean 'KWConv2d'"
    ):
        MODELS.build(backbone)


def test_conv1d():
    conv = build_conv_layer(dict(type='KWConv1d', budget=4), 8, 8, 3)
    assert conv.warehouse.cells.shape == (12, 8, 8, 1)


@pytest.mark.parametrize('budget', [1 / 2, 1, 4])
def test_resnet(budget):
    network = ResNet(
        18, stem_channels=16, base_channels=16, conv_cfg=dict(type='KWConv2d', budget=budget)
    )
    network.init_weights()
    assert not any(type(module) is nn.Conv2d for module in network.modules())
    warehouses = [module for module in network.modules() if isinstance(module, Warehouse)]
    assert len(warehouses) == len(kw_layers(network)) == 20, 'one for each layer'
    mmkw.set_temperature(network, 0.5)
    (y,) = network(torch.randn(2, 3, 32, 32))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_head():
    head = RetinaHead(3, 16, stacked_convs=2, feat_channels=16, conv_cfg=CONV_CFG)
    head.init_weights()
    maps = [torch.randn(2, 16, size, size) for size in (8, 4)]
    scores, _ = head(maps)
    assert len(kw_layers(head)) == 4
    assert [s.shape[2:] for s in scores] == [m.shape[2:] for m in maps]


@pytest.mark.parametrize('rois', [3, 0])
def test_mask_head_with_and_without_rois(rois):
    head = FCNMaskHead(
        num_convs=2, in_channels=8, conv_out_channels=8, num_classes=3, conv_cfg=CONV_CFG
    )
    head.init_weights()
    masks = head(torch.randn(rois, 8, 14, 14))
    assert masks.shape == (rois, 3, 28, 28)
    masks.sum().backward()
    assert all(layer.warehouse.cells.grad is not None for layer in kw_layers(head))
