"""Deep stems: the same three convolutions in the names of each library."""

from __future__ import annotations

import mmdet.models.backbones as mmdet
import pytest
import timm
import torch
from mmpretrain.models.backbones import ResNet

import mmkw
from mmkw.checkpoints.warm_starting import warm_start
from mmkw.openmmlab.backbones import KWResNet
from mmkw.openmmlab.backbones.any_backbone import build_kw_backbone

WIDTHS = dict(stem_channels=16, base_channels=8)
DEEP = dict(depth=50, deep_stem=True, **WIDTHS)


def timm_resnet(avg_down):
    """One of timm's, with its names and those of a classifier."""
    network = timm.models.ResNet(
        timm.models.resnet.Bottleneck,
        (3, 4, 6, 3),
        num_classes=10,
        stem_type='deep',
        stem_width=8,
        avg_down=avg_down,
    )
    assert 'conv1.6.weight' in network.state_dict()
    return network


def first_map(network, x):
    """The output of the first stage, whoever the network is by."""
    if isinstance(network, timm.models.ResNet):
        x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        return network.layer1(x)
    return network(x)[0]


PLAIN = {
    'mmpretrain': lambda avg: ResNet(avg_down=avg, out_indices=(0,), **DEEP),
    'mmdet and mmseg': lambda avg: mmdet.ResNet(avg_down=avg, out_indices=(0,), **DEEP),
    'timm': timm_resnet,
}
# Without and with average pooling before convolutions that downsample.
CASES = [(name, avg_down) for name in PLAIN for avg_down in (False, True)]


def plain_and_options(name, avg_down):
    torch.manual_seed(0)
    plain = PLAIN[name](avg_down)
    plain.eval()
    for value in plain.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    base_channels = 64 if name == 'timm' else 8
    return plain, dict(DEEP, base_channels=base_channels, avg_down=avg_down, out_indices=(0,))


def assert_same(plain, network):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network.eval()
        expected, actual = first_map(plain, x), network(x)[0]
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')
@pytest.mark.parametrize('in_order', [True, False])
@pytest.mark.parametrize(('name', 'avg_down'), CASES)
def test_first_map_is_the_plain_one_whatever_the_names(name, avg_down, in_order, tmp_path):
    plain, options = plain_and_options(name, avg_down)
    # safetensors has them sorted.
    state_dict = dict(plain.state_dict() if in_order else sorted(plain.state_dict().items()))
    torch.save(state_dict, tmp_path / 'plain.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    network = KWResNet(**options, init_cfg=init_cfg)
    network.init_weights()
    assert mmkw.get_temperature(network) == 1
    assert_same(plain, network)
    converted = KWResNet(**options)
    result = warm_start(converted, state_dict)
    assert set(result.dropped) <= {'fc.weight', 'fc.bias'}
    assert_same(plain, converted)
    # Its own checkpoints keep their names.
    again = KWResNet(**options)
    again.load_state_dict(network.state_dict())
    assert_same(plain, again)


@pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')
def test_a_backbone_in_the_other_names():
    plain, options = plain_and_options('mmpretrain', True)
    network = build_kw_backbone(dict(type='mmdet.ResNet', **options), dict(layers=['layer*']))
    network.load_state_dict(plain.state_dict())
    assert_same(plain, network)
