"""What holds for every backbone of MMPretrain and MMDetection, as KernelWarehouse and CondConv."""

from __future__ import annotations

import math

import mmdet.models
import mmdet.registry
import mmpretrain.models
import mmpretrain.registry
import pytest
import torch
from kernels import kw_layers
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmkw
from mmkw.methods.cond_conv import CondRouting
from mmkw.openmmlab.backbones.any_backbone import backbone_plan, build_plain

VIT = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SMALL_VIT = dict(arch=VIT, img_size=64, patch_size=16)
TWINS = dict(
    embed_dims=[16, 32, 64, 128],
    depths=[1, 1, 1, 2],
    num_heads=[1, 2, 4, 8],
    patch_sizes=[4, 2, 2, 2],
    strides=[4, 2, 2, 2],
    mlp_ratios=[2, 2, 2, 2],
    sr_ratios=[8, 4, 2, 1],
)
STAGES = dict(depths=[1, 1, 1, 1], embed_dims=[16, 32, 64, 128])
POOLING = dict(layers=[1, 1, 1, 1], embed_dims=[16, 32, 64, 128])
SWIN = dict(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8])


def hr_stages(block):
    return {
        f'stage{stage}': dict(
            num_modules=1,
            num_branches=stage,
            block=block if stage > 1 else 'BOTTLENECK',
            num_blocks=(1,) * stage,
            num_channels=(8, 16, 32, 64)[:stage],
        )
        for stage in (1, 2, 3, 4)
    }


# A small form of each registered backbone. `image` is the shape of its images, by default
# (3, 64, 64), and `max_attention` how much of the network's size attentions may add.
BACKBONES = {
    'mmpretrain.AlexNet': dict(),
    'mmpretrain.BEiTViT': SMALL_VIT,
    'mmpretrain.CSPDarkNet': dict(depth=53),
    'mmpretrain.CSPResNeXt': dict(depth=50),
    'mmpretrain.CSPResNet': dict(depth=50),
    'mmpretrain.Conformer': dict(
        arch=dict(embed_dims=16, depths=12, num_heads=2, channel_ratio=1), base_channels=16
    ),
    'mmpretrain.ConvMixer': dict(arch=dict(embed_dims=16, depth=2, patch_size=7, kernel_size=9)),
    'mmpretrain.ConvNeXt': dict(arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64])),
    'mmpretrain.DaViT': dict(
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        window_size=2,
        pad_small_map=True,
    ),
    'mmpretrain.DeiT3': SMALL_VIT,
    'mmpretrain.DenseNet': dict(arch=dict(growth_rate=16, depths=[2, 3, 4, 3], init_channels=32)),
    'mmpretrain.DistilledVisionTransformer': SMALL_VIT,
    'mmpretrain.EdgeNeXt': dict(
        arch=dict(channels=[16, 32, 48, 64], depths=[2, 2, 2, 2], num_heads=[4, 4, 4, 4])
    ),
    'mmpretrain.EfficientFormer': dict(arch='l1', image=(3, 224, 224)),
    'mmpretrain.EfficientNet': dict(arch='b0'),
    'mmpretrain.EfficientNetV2': dict(arch='b0'),
    'mmpretrain.HRNet': dict(extra=hr_stages('BASIC')),
    'mmpretrain.HiViT': dict(
        arch=dict(embed_dims=64, depths=[1, 1, 7], num_heads=2), out_indices=[6], img_size=64
    ),
    'mmpretrain.HorNet': dict(
        arch=dict(
            base_dim=16,
            depths=[1, 1, 1, 1],
            orders=[2, 3, 4, 5],
            dw_cfg=[
                dict(type='DW', kernel_size=7),
                dict(type='DW', kernel_size=7),
                dict(type='GF', h=4, w=3),
                dict(type='GF', h=2, w=2),
            ],
        )
    ),
    'mmpretrain.InceptionV3': dict(image=(3, 96, 96)),
    'mmpretrain.LeNet5': dict(image=(1, 32, 32), max_attention=2),
    'mmpretrain.LeViT': dict(arch='128s', img_size=64),
    'mmpretrain.MViT': dict(
        arch=dict(embed_dims=16, num_layers=4, num_heads=1, downscale_indices=[1, 2, 3]),
        img_size=64,
    ),
    'mmpretrain.MixMIMTransformer': dict(
        arch=dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=[4, 4, 4, 2],
    ),
    'mmpretrain.MlpMixer': dict(
        arch=dict(embed_dims=16, num_layers=2, tokens_mlp_dims=8, channels_mlp_dims=32),
        img_size=64,
    ),
    'mmpretrain.MobileNetV2': dict(widen_factor=0.25),
    'mmpretrain.MobileNetV3': dict(arch='small_050'),
    'mmpretrain.MobileOne': dict(arch='s0'),
    'mmpretrain.MobileViT': dict(arch='xx_small'),
    'mmpretrain.PCPVT': dict(arch=TWINS),
    'mmpretrain.PoolFormer': dict(arch=POOLING),
    'mmpretrain.PyramidVig': dict(arch='tiny', image=(3, 224, 224)),
    'mmpretrain.RIFormer': dict(arch=POOLING),
    'mmpretrain.RegNet': dict(arch='regnetx_400mf'),
    'mmpretrain.RepLKNet': dict(
        arch=dict(
            large_kernel_sizes=[7, 7, 5, 5],
            layers=[1, 1, 1, 1],
            channels=[16, 32, 64, 128],
            small_kernel=3,
            dw_ratio=1,
        )
    ),
    'mmpretrain.RepMLPNet': dict(
        arch=dict(channels=[16, 32, 64, 128], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 8, 16]),
        img_size=64,
    ),
    'mmpretrain.RepVGG': dict(arch='A0', base_channels=16),
    'mmpretrain.Res2Net': dict(depth=50),
    'mmpretrain.ResNeSt': dict(depth=50),
    'mmpretrain.ResNeXt': dict(depth=50, groups=8),
    'mmpretrain.ResNet': dict(depth=18),
    'mmpretrain.ResNetV1c': dict(depth=18),
    'mmpretrain.ResNetV1d': dict(depth=18),
    'mmpretrain.ResNet_CIFAR': dict(depth=18, image=(3, 32, 32)),
    'mmpretrain.RevVisionTransformer': SMALL_VIT,
    'mmpretrain.SEResNeXt': dict(depth=50),
    'mmpretrain.SEResNet': dict(depth=50),
    'mmpretrain.SVT': dict(arch=dict(TWINS, window_sizes=[4, 4, 2, 2])),
    'mmpretrain.ShuffleNetV1': dict(widen_factor=0.5),
    'mmpretrain.ShuffleNetV2': dict(widen_factor=0.5),
    'mmpretrain.SwinTransformer': dict(
        arch=dict(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        pad_small_map=True,
    ),
    'mmpretrain.SwinTransformerV2': dict(
        arch=dict(
            embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], extra_norm_every_n_blocks=0
        ),
        img_size=64,
        window_size=4,
        pad_small_map=True,
    ),
    'mmpretrain.T2T_ViT': dict(
        embed_dims=16, num_layers=2, img_size=64, layer_cfgs=dict(num_heads=2),
        t2t_cfg=dict(token_dims=16),
    ),
    'mmpretrain.TIMMBackbone': dict(model_name='mobilenetv3_small_050'),
    'mmpretrain.TNT': dict(
        arch=dict(
            embed_dims_outer=32, embed_dims_inner=8, num_layers=2, num_heads_inner=2,
            num_heads_outer=2,
        ),
        img_size=64,
    ),
    'mmpretrain.TinyViT': dict(
        arch=dict(channels=[16, 32, 64, 64], num_heads=[1, 2, 2, 2], depths=[1, 1, 2, 1]),
        img_size=(64, 64),
        window_size=[4, 4, 4, 2],
    ),
    'mmpretrain.VAN': dict(arch=dict(STAGES, ffn_ratios=[2, 2, 2, 2])),
    'mmpretrain.VGG': dict(depth=11, norm_cfg=dict(type='BN')),
    'mmpretrain.ViTEVA02': SMALL_VIT,
    'mmpretrain.ViTSAM': dict(
        arch=dict(VIT, global_attn_indexes=[1]), img_size=64, out_channels=16, window_size=2
    ),
    'mmpretrain.Vig': dict(arch='tiny', image=(3, 224, 224)),
    'mmpretrain.VisionTransformer': SMALL_VIT,
    'mmpretrain.XCiT': dict(
        img_size=64, embed_dims=16, depth=2, cls_attn_layers=1, num_heads=2
    ),
    'mmdet.CSPDarknet': dict(deepen_factor=0.33, widen_factor=0.25),
    'mmdet.CSPNeXt': dict(deepen_factor=0.33, widen_factor=0.25),
    'mmdet.Darknet': dict(depth=53),
    'mmdet.DetectoRS_ResNeXt': dict(depth=50, groups=8),
    'mmdet.DetectoRS_ResNet': dict(depth=50),
    'mmdet.EfficientNet': dict(arch='b0'),
    'mmdet.HRNet': dict(extra=hr_stages('BOTTLENECK')),
    'mmdet.HourglassNet': dict(
        downsample_times=2, num_stacks=2, stage_channels=(8, 16, 16), stage_blocks=(1, 1, 1),
        feat_channel=8,
    ),
    'mmdet.MobileNetV2': dict(widen_factor=0.25),
    'mmdet.PyramidVisionTransformer': dict(embed_dims=16, num_layers=[1, 1, 1, 1]),
    'mmdet.PyramidVisionTransformerV2': dict(embed_dims=16, num_layers=[1, 1, 1, 1]),
    'mmdet.RegNet': dict(arch='regnetx_400mf'),
    'mmdet.Res2Net': dict(depth=50),
    'mmdet.ResNeSt': dict(depth=50),
    'mmdet.ResNeXt': dict(depth=50, groups=8),
    'mmdet.ResNet': dict(depth=18),
    'mmdet.ResNetV1d': dict(depth=18),
    'mmdet.SSDVGG': dict(depth=11, out_indices=(3,), out_feature_indices=(24,)),
    'mmdet.SwinTransformer': SWIN,
    # Layers that start at zero on purpose: offsets, and the end of a non-local block.
    'DCN': dict(
        type='mmdet.ResNet', depth=50, base_channels=16, stage_with_dcn=(False, True, False, False),
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
    ),
    'DCNv2': dict(
        type='mmdet.ResNet', depth=50, base_channels=16, stage_with_dcn=(False, True, False, False),
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    ),
    'NonLocal2d': dict(
        type='mmdet.ResNet', depth=50, base_channels=16, zero_init_residual=False,
        plugins=[
            dict(
                cfg=dict(type='NonLocal2d'), stages=(False, True, False, False),
                position='after_conv2',
            )
        ],
    ),
}  # fmt: skip

# Backbones that cannot be compared, with why.
LEFT_OUT = {
    'mmdet.TridentResNet': 'starts weights at what the memory held, until a checkpoint is loaded',
    'mmpretrain.SparseConvNeXt': 'reads the mask that SparK sets before each run',
    'mmpretrain.SparseResNet': 'reads the mask that SparK sets before each run',
}


def registered_backbones() -> set[str]:
    return {
        f'{registry.scope}.{name}'
        for registry in (mmpretrain.registry.MODELS, mmdet.registry.MODELS)
        for name, kind in registry.module_dict.items()
        if kind.__module__.startswith(f'{registry.scope}.models.backbones')
    }


def test_the_table_has_every_registered_backbone():
    tried = {config.get('type', name) for name, config in BACKBONES.items()}
    assert registered_backbones() == tried | LEFT_OUT.keys()


def configs_of(name: str) -> tuple[dict, dict]:
    """The config of a backbone, and of it in KWBackbone."""
    config = dict(dict(type=name), **BACKBONES[name])
    image = config.pop('image', (3, 64, 64))
    max_attention = config.pop('max_attention', 1 / 4)
    warehouse = dict(max_attention=max_attention)
    return config, dict(type='KWBackbone', backbone=config, input_shape=image, warehouse=warehouse)


# These compute encodings of positions in float32.
FLOAT32 = {'mmpretrain.EdgeNeXt', 'mmpretrain.XCiT'}


def build(config: dict, dtype: torch.dtype) -> nn.Module:
    """A network as it starts training."""
    torch.manual_seed(0)
    network = MODELS.build(config)
    network.init_weights()
    return network.to(dtype)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tensors_in(outputs) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if outputs is None:
        return []
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts for tensor in tensors_in(part)]


def outputs_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    torch.manual_seed(0)  # for what drops and shuffles
    return tensors_in(network(images))


@torch.no_grad()
def stir(network: nn.Module) -> None:
    """Move all weights and statistics away from where networks start, at zeros and ones."""
    for parameter in network.parameters():
        fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 100
        parameter.add_(torch.randn_like(parameter) / math.sqrt(fan) / 10)
    for name, buffer in network.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 2)


def names_without_gradient(network: nn.Module, images: Tensor) -> set[str]:
    network.train()
    network.zero_grad()
    sum(output.square().mean() for output in outputs_of(network, images)).backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return {name for name, parameter in trained.items() if parameter.grad is None}


def assert_same_outputs(network, plain, images) -> None:
    for each in (network, plain):
        each.eval()
    with torch.no_grad():
        outputs, expected = outputs_of(network, images), outputs_of(plain, images)
    assert len(outputs) == len(expected) > 0
    for output, wanted in zip(outputs, expected):
        assert wanted.std() > 0, 'nothing to compare'
        scale = wanted.abs().max()
        tolerance = 1e-10 if wanted.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(output / scale, wanted / scale, rtol=0, atol=tolerance)


@torch.no_grad()
def load_first_kernels(network: nn.Module, plain: nn.Module) -> None:
    """Give a network of CondConv the plain weights, and routing that takes the first kernel."""
    state_dict = network.state_dict()
    for name, value in plain.state_dict().items():
        if state_dict[name].shape == value.shape:
            state_dict[name].copy_(value)
        else:
            state_dict[name][0].view_as(value).copy_(value)
    for layer in network.modules():
        if isinstance(layer, CondRouting):
            layer.fc.weight.zero_()
            layer.fc.bias.copy_(torch.tensor([100.0, -100.0]))


IN_DEFAULT_SUITE = {
    'mmpretrain.ConvNeXt',
    'mmpretrain.DenseNet',
    'mmpretrain.HRNet',
    'mmpretrain.MViT',
    'mmpretrain.MlpMixer',
    'mmpretrain.MobileNetV3',
    'mmpretrain.RepMLPNet',
    'mmpretrain.ShuffleNetV2',
    'mmpretrain.SwinTransformer',
    'mmpretrain.SwinTransformerV2',
    'mmpretrain.XCiT',
    'mmdet.CSPDarknet',
    'mmdet.PyramidVisionTransformer',
    'DCNv2',
    'NonLocal2d',
}


@pytest.mark.filterwarnings('ignore:.*plain kernels')
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in IN_DEFAULT_SUITE else pytest.mark.slow)
        for name in BACKBONES
    ],
)
def test_every_backbone(name):
    MMLogger.get_current_instance().setLevel('ERROR')
    config, wrapped = configs_of(name)
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    images = torch.randn(2, *wrapped['input_shape'], dtype=dtype)
    plain, kw = build(config, dtype), build(wrapped, dtype)
    assert type(kw) is type(plain)
    layers = list(kw_layers(kw))
    dynamic = build(
        dict(
            type='DynamicBackbone',
            backbone=config,
            layer=dict(type='CondConv2d', num_kernels=2),
            layers=layers,
        ),
        dtype,
    )

    # What is built is what the plan says, and each layer that stays plain does so for a reason.
    plan = backbone_plan(
        build_plain(config), wrapped['warehouse'], input_shape=wrapped['input_shape']
    )
    assert layers and set(layers) == set(plan.layers)
    assert set(plan.plain) >= {
        name for name, module in kw.named_modules() if type(module) in (nn.Conv2d, nn.Linear)
    }
    assert count_parameters(kw) == plan.parameters
    attentions = sum(count_parameters(layer.attention) for layer in kw_layers(kw).values())
    limit = wrapped['warehouse']['max_attention']
    assert 0 < attentions == sum(plan.attention.values()) <= limit * count_parameters(plain)

    # What starts at a constant on purpose still does.
    for network in (kw, dynamic):
        started = network.state_dict()
        for key, value in plain.state_dict().items():
            if value.numel() > 1 and value.min() == value.max():
                assert torch.equal(started[key], value), key

    # All that is trained gets a gradient, where it does in the plain network.
    without = names_without_gradient(plain, images)
    mmkw.set_temperature(kw, 0.5)
    for network in (kw, dynamic):
        assert names_without_gradient(network, images) <= without

    # With the plain network's weights the outputs are the same.
    stir(plain)
    kw.load_state_dict(plain.state_dict(), strict=False)
    assert mmkw.get_temperature(kw) == 1
    assert_same_outputs(kw, plain, images)
    load_first_kernels(dynamic, plain)
    assert_same_outputs(dynamic, plain, images)

    # Weights load into another network of the same config, as strictly as the plain network's:
    # Swin V2 leaves tables out of its state dict.
    again = build(wrapped, dtype)
    stir(kw)
    mmkw.set_temperature(kw, 0.25)
    loaded = again.load_state_dict(kw.state_dict(), strict=False)
    assert loaded == plain.load_state_dict(plain.state_dict(), strict=False)
    assert_same_outputs(again, kw, images)
