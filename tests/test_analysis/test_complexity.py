"""Costs by stage against sums by hand and against torch's own counter."""

import torch
from mmpretrain.models import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmkw.analysis.complexity import Cost, cost_by_stage
from mmkw.analysis.operations import Operations
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.openmmlab.backbones import KWConvNeXt, KWResNet
from mmkw.ops import forced_route


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            KWConv2d(8, 12, 3, padding=1, stride=2, budget=2, bias=False),
            nn.BatchNorm2d(12),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))


def test_small_network_by_hand():
    model = Small()
    costs = cost_by_stage(model, (torch.ones(1, 3, 8, 8),))
    m, n, cell, hidden = 9, 18, 12 * 8, 16
    attention = Operations(attention=8 * hidden + hidden * m * (n + 1))
    mixed = Operations(convolution=12 * 4 * 4 * 8 * 9, assembling=m * n * cell)
    parameters = sum(p.numel() for p in model.backbone[1].parameters())
    assert costs == [
        Cost('backbone.0', 8 * 3 * 9, Operations(convolution=8 * 8 * 8 * 3 * 9), 0),
        Cost('backbone.1', parameters, mixed + attention, costs[1].other),
        Cost('backbone.2', 2 * 12, Operations(), 2 * 12 * 4 * 4),
        Cost('head', 12 * 5 + 5, Operations(convolution=12 * 5), 0),
    ]
    # Within the layer MMEngine counts, beside, the norm of the attention.
    assert costs[1].other < 3 * hidden + 8 * 8 * 8 * 2


def totals(model, x):
    """By stages, and what torch counts; a multiply-add is two of its operations."""
    costs = cost_by_stage(model, (x,))
    with torch.no_grad(), forced_route('reference'), FlopCounterMode(display=False) as counter:
        model(x)
    return costs, counter.get_total_flops() // 2


class Wrapped(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[-1]


def test_networks_with_shared_warehouses():
    for backbone, stages in (
        (KWResNet(18, budget=1, base_channels=8, stem_channels=8), {'conv1', 'layer1', 'layer4'}),
        (
            KWConvNeXt(dict(depths=[1, 1, 1, 1], channels=[16, 32, 64, 128]), budget=1),
            {'stages.0', 'downsample_layers.3'},
        ),
    ):
        model = Wrapped(backbone)
        costs, expected = totals(model, torch.rand(1, 3, 64, 64))
        assert sum(cost.operations.total for cost in costs) == expected
        assert sum(cost.parameters for cost in costs) == sum(p.numel() for p in model.parameters())
        names = {cost.stage.removeprefix('backbone.') for cost in costs}
        assert stages < names
        mixing = {c.stage for c in costs if c.operations.assembling}
        assert mixing and all(c.operations.attention for c in costs if c.stage in mixing)


def test_self_attention_is_counted():
    """Products of activations stand in the last column, as they have no weights."""
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    model = Wrapped(VisionTransformer(arch, img_size=32, patch_size=8))
    costs = cost_by_stage(model, (torch.rand(1, 3, 32, 32),))
    (layer,) = [cost for cost in costs if cost.stage == 'backbone.layers.0']
    tokens = 4 * 4 + 1
    products = 2 * tokens * tokens * 16
    norms = layer.other - products
    assert layer.operations == Operations(convolution=tokens * 16 * (3 * 16 + 16 + 2 * 32))
    # Two layer norms of 5 operations an activation, in MMEngine's count.
    assert norms == 2 * 5 * tokens * 16
