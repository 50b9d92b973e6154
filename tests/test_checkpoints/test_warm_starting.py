"""Warm start: plain networks of several libraries against the KW networks that start from them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hostile_pickles import creates
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint as load_with_mmengine
from mmpretrain.models.backbones import ConvNeXt, MobileNetV2, ResNet, VisionTransformer
from tiny_runs import load_tool

import mmkw
from mmkw.checkpoints import load_checkpoint
from mmkw.checkpoints.warm_starting import convert_plain, warm_start
from mmkw.methods.kernel_warehouse import partition_kernels
from mmkw.openmmlab.backbones import KWConvNeXt, KWMobileNetV2, KWResNet
from mmkw.openmmlab.backbones.vision_transformer import KWVisionTransformer

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'plain_to_mmkw.py'
SIZE = 32
NARROW = dict(stem_channels=16, base_channels=16)
SMALL_CONVNEXT = dict(depths=[2, 1, 3, 1], channels=[16, 32, 48, 64])
SMALL_VIT = dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=96)
SMALL = {
    'ResNet18': (lambda: ResNet(18, **NARROW), lambda b: KWResNet(18, b, **NARROW)),
    'ResNet50': (lambda: ResNet(50, **NARROW), lambda b: KWResNet(50, b, **NARROW)),
    'MobileNetV2': (lambda: MobileNetV2(0.25), lambda b: KWMobileNetV2(0.25, b)),
    'ConvNeXt': (
        lambda: ConvNeXt(SMALL_CONVNEXT),
        lambda b: KWConvNeXt(SMALL_CONVNEXT, b, blocks_per_warehouse=2),
    ),
    'ConvNeXt of convolutions': (
        lambda: ConvNeXt(SMALL_CONVNEXT, linear_pw_conv=False),
        lambda b: KWConvNeXt(SMALL_CONVNEXT, b, linear_pw_conv=False),
    ),
    'DeiT': (
        lambda: VisionTransformer(SMALL_VIT, img_size=SIZE),
        lambda b: KWVisionTransformer(SMALL_VIT, b, blocks_per_warehouse=2, img_size=SIZE),
    ),
}
FULL = {
    'ResNet18': (lambda: ResNet(18), lambda b: KWResNet(18, b)),
    'ResNet50': (lambda: ResNet(50), lambda b: KWResNet(50, b)),
    'MobileNetV2': (lambda: MobileNetV2(), lambda b: KWMobileNetV2(budget=b)),
    'ConvNeXt-Tiny': (lambda: ConvNeXt(), lambda b: KWConvNeXt(budget=b)),
    'DeiT-tiny': (
        lambda: VisionTransformer('deit-tiny', img_size=64),
        lambda b: KWVisionTransformer(budget=b, img_size=64),
    ),
}
BUDGETS = [1, 2, 4]


def randomise(network):
    """Random values everywhere, in norms, biases and running statistics as well."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            value.fill_(7)
        elif name.endswith('running_var'):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.squeeze().dim() < 2:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if not name.endswith(('bias', 'mean')):
                value.add_(1)
        else:
            scale = (2 / value[0].numel()) ** 0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
    network.eval()
    return network


def flat(outputs):
    """All the numbers in nested outputs."""
    if isinstance(outputs, torch.Tensor):
        return outputs.flatten()
    return torch.cat([flat(output) for output in outputs])


def assert_same_outputs(plain, network, tolerances=((torch.float32, 1e-5),), size=SIZE):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in tolerances:
        with torch.no_grad():
            plain.to(dtype).eval()
            network.to(dtype).eval()
            expected, actual = flat(plain(x.to(dtype))), flat(network(x.to(dtype)))
        assert expected.norm() > 0
        assert (actual - expected).norm() / expected.norm() < tolerance


def assert_starts_exactly(make_plain, make_kw, budget, size):
    plain, network = randomise(make_plain()).double(), make_kw(budget).double()
    result = warm_start(network, plain.state_dict())
    assert set(result.mapping) == set(plain.state_dict())
    assert not result.fresh and not result.dropped
    assert mmkw.get_temperature(network) == 1
    both = (torch.float64, 1e-10), (torch.float32, 1e-5)
    assert_same_outputs(plain, network, both, size)
    mmkw.set_temperature(network, 0.9)
    with pytest.raises(AssertionError):
        assert_same_outputs(plain, network, size=size)


@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize('name', SMALL)
def test_computes_what_the_plain_network_did(name, budget):
    assert_starts_exactly(*SMALL[name], budget, SIZE)


def test_computes_what_the_plain_network_did_with_budget_3_2():
    assert_starts_exactly(*SMALL['DeiT'], '3/2', SIZE)


@pytest.mark.slow
@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize('name', FULL)
def test_full_size_computes_what_the_plain_network_did(name, budget):
    assert_starts_exactly(*FULL[name], budget, 64)


def test_trains_on_the_first_batch_as_the_plain_network_does():
    # Float64, as norms over a batch of 4 enlarge rounding errors.
    plain, network = randomise(ResNet(18, **NARROW)).double(), KWResNet(18, 2, **NARROW).double()
    warm_start(network, plain.state_dict())
    plain.train()
    network.train()
    x = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    expected, actual = plain(x)[-1], network(x)[-1]
    assert (actual - expected).norm() / expected.norm() < 1e-10
    mean = 'layer4.1.bn2.running_mean'
    assert torch.allclose(network.state_dict()[mean], plain.state_dict()[mean], atol=1e-10)


def test_blocks_of_a_kernel_are_where_its_mixtures_stand():
    partition = partition_kernels({'conv': (4, 6, 3, 2)}, cell_ratio=0.5)
    kernel = torch.randn(4, 6, 3, 2)
    expected = [
        kernel[out : out + 2, in_ : in_ + 3, row, column, None, None]
        for row in range(3)
        for column in range(2)
        for out in (0, 2)
        for in_ in (0, 3)
    ]
    blocks = partition.kernels['conv'].cut(kernel, partition.cell_shape)
    assert torch.equal(blocks, torch.stack(expected))

    partition = partition_kernels({'conv': (4, 6, 3, 2)}, cell_ratio=0.5, spatial_partition=False)
    expected = [kernel[out : out + 2, in_ : in_ + 3] for out in (0, 2) for in_ in (0, 3)]
    blocks = partition.kernels['conv'].cut(kernel, partition.cell_shape)
    assert torch.equal(blocks, torch.stack(expected))


def test_cells_that_no_mixture_starts_from_and_hidden_layers_stay():
    network = KWResNet(18, 2, **NARROW)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    warm_start(network, randomise(ResNet(18, **NARROW)).state_dict())
    for name, value in network.state_dict().items():
        if '.attention.fc1.' in name or '.attention.norm.' in name:
            assert torch.equal(value, before[name])
        elif name.endswith('.cells'):
            assert torch.equal(value[1::2], before[name][1::2])
            assert not torch.isclose(value[::2], before[name][::2]).flatten(1).all(1).any()


@pytest.mark.parametrize('basis_ratio', [None, 1 / 16])
def test_attentions_start_at_the_allocation(basis_ratio):
    """Whatever the temperature, up to the constant in the attention's denominator."""
    network = KWResNet(18, 2, attention=dict(basis_ratio=basis_ratio), **NARROW)
    warm_start(network, randomise(ResNet(18, **NARROW)).state_dict())
    layer = network.layer2[0].conv2.eval()
    x = torch.randn(2, layer.in_channels, 4, 4)
    plain = layer.kernels(x)
    mmkw.set_temperature(network, 0)
    torch.testing.assert_close(layer.kernels(x), plain / 1.001)


# Sources ---------------------------------------------------------------------------------------


def classifier(backbone, in_channels, num_classes=10, head='LinearClsHead'):
    init_default_scope('mmpretrain')
    neck = dict(type='GlobalAveragePooling')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=neck if backbone['type'].endswith(('ResNet', 'MobileNetV2')) else None,
            head=dict(type=head, num_classes=num_classes, in_channels=in_channels),
        )
    )


RESNET = dict(type='KWResNet', depth=18, **NARROW)
MOBILENET = dict(type='KWMobileNetV2', widen_factor=0.5)
CONVNEXT = dict(type='KWConvNeXt', arch=SMALL_CONVNEXT)
VIT = dict(type='KWVisionTransformer', arch=SMALL_VIT, img_size=SIZE)
CLASSIFIERS = {
    'ResNet18': (dict(type='KWResNet', depth=18), 512, 'LinearClsHead'),
    'ResNet50': (dict(type='KWResNet', depth=50), 2048, 'LinearClsHead'),
    'ResNet': (RESNET, 128, 'LinearClsHead'),
    'MobileNetV2': (MOBILENET, 1280, 'LinearClsHead'),
    'ConvNeXt': (CONVNEXT, 64, 'LinearClsHead'),
    'DeiT': (VIT, 48, 'VisionTransformerClsHead'),
}


def kw_classifier(name, **options):
    backbone, in_channels, head = CLASSIFIERS[name]
    return classifier(backbone, in_channels, head=head, **options)


def plain_classifier(name, **options):
    backbone, in_channels, head = CLASSIFIERS[name]
    return randomise(classifier(dict(backbone, budget=None), in_channels, head=head, **options))


def torchvision_convnext():
    block = torchvision.models.convnext.CNBlockConfig
    stages = zip(SMALL_CONVNEXT['channels'], SMALL_CONVNEXT['depths'])
    channels = [*SMALL_CONVNEXT['channels'][1:], None]
    settings = [block(width, after, depth) for (width, depth), after in zip(stages, channels)]
    return torchvision.models.ConvNeXt(settings, num_classes=10)


def torchvision_mobilenet_v2():
    return torchvision.models.mobilenet_v2(width_mult=0.5, num_classes=10)


def torchvision_vit():
    return torchvision.models.VisionTransformer(
        image_size=SIZE, patch_size=16, num_layers=4, num_heads=3, hidden_dim=48, mlp_dim=96,
        num_classes=10,
    )  # fmt: skip


def timm_vit():
    return timm.models.VisionTransformer(
        img_size=SIZE, patch_size=16, depth=4, num_heads=3, embed_dim=48, mlp_ratio=2,
        num_classes=10,
    )  # fmt: skip


def timm_convnext():
    return timm.models.ConvNeXt(
        depths=SMALL_CONVNEXT['depths'], dims=SMALL_CONVNEXT['channels'], num_classes=10
    )


OTHER_LIBRARIES = [
    ('torchvision', 'ResNet18', lambda: torchvision.models.resnet18(num_classes=10)),
    pytest.param(
        *('torchvision', 'ResNet50', lambda: torchvision.models.resnet50(num_classes=10)),
        marks=pytest.mark.slow,
    ),
    ('torchvision', 'MobileNetV2', torchvision_mobilenet_v2),
    ('torchvision', 'ConvNeXt', torchvision_convnext),
    ('torchvision', 'DeiT', torchvision_vit),
    ('timm', 'ResNet18', lambda: timm.create_model('resnet18', num_classes=10)),
    ('timm', 'MobileNetV2', lambda: timm.create_model('mobilenetv2_050', num_classes=10)),
    ('timm', 'ConvNeXt', timm_convnext),
    ('timm', 'DeiT', timm_vit),
]


@pytest.mark.parametrize(('library', 'name', 'build'), OTHER_LIBRARIES)
def test_networks_of_other_libraries(library, name, build):
    plain, network = randomise(build()), kw_classifier(name)
    result = warm_start(network, plain.state_dict())
    assert library in result.source_format
    assert set(result.mapping) == set(plain.state_dict()) and not result.fresh
    assert_same_outputs(plain, network)


# Names of parts of MMPretrain's networks, and those elsewhere.
AUTHORS_CONVNEXT = [
    (r'backbone\.(stages\.\d\.\d)\.depthwise_conv', r'\1.dwconv'),
    (r'backbone\.(stages\.\d\.\d)\.pointwise_conv', r'\1.pwconv'),
    (r'backbone\.norm3\.', 'norm.'),
    (r'backbone\.', ''),
    (r'head\.fc\.', 'head.'),
]
TORCHVISION_RESNET = [(r'backbone\.', ''), (r'head\.fc\.', 'fc.')]


def renamed(state_dict, rules):
    """The state dict in other names; the first rule that fits a name's start changes it."""
    new = {}
    for name, value in state_dict.items():
        for pattern, replacement in rules:
            changed, count = re.subn(rf'^{pattern}', replacement, name)
            if count:
                break
        new[changed] = value
    assert len(new) == len(state_dict)
    return new


@pytest.mark.parametrize(
    ('name', 'rules', 'source_format'),
    [
        ('ConvNeXt', AUTHORS_CONVNEXT, 'authors'),
        *(
            (name, [('', '')], 'OpenMMLab')
            for name in ('ResNet', 'MobileNetV2', 'ConvNeXt', 'DeiT')
        ),
    ],
)
def test_names_of_the_authors_and_mmpretrain(name, rules, source_format):
    plain, network = plain_classifier(name), kw_classifier(name)
    state_dict = renamed(plain.state_dict(), rules)
    result = warm_start(network, dict(model=state_dict, epoch=299))
    assert source_format in result.source_format
    assert set(result.mapping) == set(state_dict) and not result.fresh
    assert_same_outputs(plain, network)


@pytest.mark.parametrize('source', ['bare', 'classifier', 'wrapped'])
def test_bare_backbones(source):
    plain, network = plain_classifier('ConvNeXt'), MODELS.build(CONVNEXT)
    state_dict = (plain.backbone if source == 'bare' else plain).state_dict()
    if source == 'wrapped':
        state_dict = dict(state_dict={f'module.{name}': v for name, v in state_dict.items()})
    result = warm_start(network, state_dict)
    assert result.dropped == ([] if source == 'bare' else list(state_dict)[-2:]) or source[0] == 'w'
    assert_same_outputs(plain.backbone, network)


def test_averaged_weights_are_preferred():
    network, plain = kw_classifier('ResNet'), plain_classifier('ResNet')
    other = {name: torch.zeros_like(value) for name, value in plain.state_dict().items()}
    warm_start(network, dict(model=other, model_ema=plain.state_dict()))
    assert_same_outputs(plain, network)


def test_any_network_with_a_plan():
    plain = randomise(torchvision.models.resnet18(num_classes=10))
    network = torchvision.models.resnet18(num_classes=10)
    layers = ['layer1.*.conv?', 'layer2.0.conv1', 'fc']
    plan = {
        'convs': dict(layers=layers[:2], budget=2),
        'fc': dict(layers=layers[2:], cell_ratio=1 / 2),
    }
    mmkw.convert(network, mmkw.KernelWarehouse(plan=plan))
    result = warm_start(network, plain.state_dict())
    assert 'fc.weight' in result.mapping
    assert_same_outputs(plain, network)


def test_kw_classifier_starts_from_the_plain_one():
    plain = plain_classifier('MobileNetV2')
    network = classifier(MOBILENET, 1280, head='KWLinearClsHead')
    warm_start(network, plain.state_dict())
    assert_same_outputs(plain, network)


def test_half_precision_source():
    plain, network = plain_classifier('ResNet').half(), kw_classifier('ResNet')
    warm_start(network, plain.state_dict())
    assert_same_outputs(plain, network)


def retinanet(**backbone):
    config = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    config.backbone = dict(out_indices=(0, 1, 2, 3), **NARROW, **backbone)
    config.neck.in_channels = [16, 32, 64, 128]
    config.neck.out_channels = config.bbox_head.in_channels = config.bbox_head.feat_channels = 16
    config.bbox_head.num_classes = 5
    init_default_scope('mmdet')
    return config


def test_detector_of_mmdet():
    plain = randomise(MODELS.build(retinanet(type='ResNet', depth=18, norm_eval=True)))
    config = retinanet(type='KWResNet', depth=18)
    network = MODELS.build(config)
    result = warm_start(network, dict(state_dict=plain.state_dict(), meta=dict(epoch=12)))
    assert set(result.mapping) == set(plain.state_dict()) and not result.fresh
    assert_same_outputs(plain, network, size=64)

    config.bbox_head.num_classes = 3
    network = MODELS.build(config)
    before = network.bbox_head.retina_cls.weight.clone()
    result = warm_start(network, plain.state_dict())
    assert result.fresh == ['bbox_head.retina_cls']
    assert result.dropped == ['bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias']
    assert torch.equal(network.bbox_head.retina_cls.weight, before)


def test_detector_from_a_classifier():
    plain = plain_classifier('ResNet')
    network = MODELS.build(retinanet(type='KWResNet', depth=18))
    result = warm_start(network, plain.state_dict())
    assert result.dropped == ['head.fc.weight', 'head.fc.bias']
    assert {layer.split('.')[0] for layer in result.fresh} == {'neck', 'bbox_head'}
    plain.backbone.out_indices = (0, 1, 2, 3)
    assert_same_outputs(plain.backbone, network.backbone)


def test_norms_of_outputs_that_only_detectors_use_start_fresh():
    plain = plain_classifier('ConvNeXt')
    detection = dict(CONVNEXT, out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
    network = MODELS.build(detection)
    result = warm_start(network, plain.state_dict())
    assert 'backbone.norm3.weight' in result.mapping
    back = kw_classifier('ConvNeXt')
    source = MODELS.build(dict(detection, budget=None)).state_dict()
    dropped = warm_start(back.backbone, source).dropped
    assert {name.split('.')[0] for name in dropped} == {'norm0', 'norm1', 'norm2'}


@pytest.mark.parametrize('num_classes', [1, 4])
def test_classifier_of_other_classes_starts_fresh(num_classes):
    plain, network = plain_classifier('ResNet'), kw_classifier('ResNet', num_classes=num_classes)
    before = network.head.fc.weight.clone()
    result = warm_start(network, plain.state_dict())
    assert result.fresh == ['head.fc']
    assert torch.equal(network.head.fc.weight, before)
    assert_same_outputs(plain.backbone, network.backbone)


def test_files_from_before_batches_were_counted():
    plain, network = plain_classifier('ResNet'), kw_classifier('ResNet')
    state_dict = plain.state_dict()
    for name in [name for name in state_dict if name.endswith('num_batches_tracked')]:
        del state_dict[name]
    warm_start(network, state_dict)
    assert_same_outputs(plain, network)


# Errors ----------------------------------------------------------------------------------------


def changed(**tensors):
    def edit(state_dict):
        state_dict.update({name.replace('__', '.'): v for name, v in tensors.items()})

    return edit


ERRORS = {
    'missing': (
        lambda s: s.pop('backbone.layer2.0.conv1.weight'),
        r'it lacks backbone\.layer2\.0\.conv1\.weight; is it damaged',
    ),
    'missing statistics': (
        lambda s: s.pop('backbone.bn1.running_var'),
        r'it lacks backbone\.bn1\.running_var',
    ),
    'half a head': (
        lambda s: s.pop('head.fc.bias'),
        r'it has head\.fc\.weight, but lacks head\.fc\.bias',
    ),
    'left over': (
        changed(backbone__layer5__0__conv1__weight=torch.zeros(3)),
        r'the network has no place for its backbone\.layer5\.0\.conv1\.weight',
    ),
    'twice': (
        changed(**{'fc__bias': torch.zeros(10), 'head__layers__head__bias': torch.zeros(10)}),
        r"'head\.fc\.bias' and 'head\.layers\.head\.bias' both mean 'head\.fc\.bias'",
    ),
    'shape of a kernel': (
        changed(backbone__layer1__0__conv1__weight=torch.zeros(16, 16, 1, 1)),
        r'layer1\.0\.conv1\.weight has shape \(16, 16, 1, 1\).* needs \(16, 16, 3, 3\)',
    ),
    'shape of a bias': (
        changed(head__fc__bias=torch.zeros(4)),
        r'head\.fc\.bias has shape \(4,\), but the network needs \(10,\)',
    ),
    'not a number': (
        changed(backbone__bn1__weight=torch.full((16,), torch.nan)),
        r'backbone\.bn1\.weight has values that are infinite, not a number',
    ),
    'integers': (
        changed(backbone__bn1__weight=torch.ones(16, dtype=torch.int64)),
        r'backbone\.bn1\.weight is of type torch\.int64',
    ),
    'sparse': (
        changed(backbone__bn1__weight=torch.ones(16).to_sparse()),
        r'backbone\.bn1\.weight is no ordinary tensor, but torch\.sparse_coo',
    ),
    'no tensor': (changed(backbone__bn1__weight=[1.0]), r"'backbone\.bn1\.weight' is of type list"),
    'KW': (
        changed(backbone__warehouses__layer1__cells=torch.zeros(3)),
        r'is of a KernelWarehouse network.*released_to_mmkw',
    ),
    'released KW': (
        changed(**{'warehouse_manager__weights__0': torch.zeros(3)}),
        r'is of a KernelWarehouse network',
    ),
    'nothing': (lambda s: s.clear(), r'it holds no state dict'),
}


@pytest.mark.parametrize('case', ERRORS)
def test_damage_is_named_and_leaves_the_network_as_it_was(case):
    edit, message = ERRORS[case]
    state_dict, network = plain_classifier('ResNet').state_dict(), kw_classifier('ResNet')
    edit(state_dict)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        warm_start(network, state_dict)
    assert '\n' not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_architecture_is_refused():
    network = kw_classifier('ResNet')
    with pytest.raises(ValueError, match=r'no known format.*features\.0\.0\.weight.*conv1\.weight'):
        warm_start(network, torchvision_mobilenet_v2().state_dict())
    with pytest.raises(ValueError, match=r'no place for its .*another architecture or depth'):
        warm_start(network, ResNet(50, **NARROW).state_dict())
    with pytest.raises(ValueError, match=r'it lacks .*another architecture or depth'):
        warm_start(MODELS.build(dict(RESNET, depth=34)), ResNet(18, **NARROW).state_dict())


def test_distilled_deit_is_refused():
    state_dict = timm_vit().state_dict()
    state_dict['dist_token'] = torch.zeros(1, 1, 48)
    with pytest.raises(ValueError, match='no place for its dist_token'):
        warm_start(kw_classifier('DeiT'), state_dict)


def test_another_image_size_is_refused_with_the_way_to_resize():
    state_dict = plain_classifier('DeiT').state_dict()
    backbone = dict(VIT, img_size=2 * SIZE)
    with pytest.raises(ValueError, match=r'pos_embed has shape \(1, 5, 48\).*\(img_size\)'):
        warm_start(MODELS.build(backbone), state_dict)
    network = kw_classifier('DeiT')
    warm_start(network, state_dict)
    # The hook that resizes is MMPretrain's own.
    MODELS.build(backbone).load_state_dict(network.backbone.state_dict())


def test_plain_target_and_small_budgets_are_refused():
    plain = plain_classifier('ResNet')
    with pytest.raises(ValueError, match="no KernelWarehouse layers.*type='KWResNet'"):
        warm_start(plain, plain.state_dict())
    network = MODELS.build(dict(RESNET, budget=1 / 2))
    with pytest.raises(ValueError, match=r'layer1\.0\.conv1\.weight.* 18 of 36 blocks'):
        warm_start(network, plain.state_dict())


# Files and the tool ----------------------------------------------------------------------------

CONFIG = """
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='KWResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        init_cfg=dict(type='Pretrained', checkpoint='not-there.pth', prefix='backbone.'),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=128),
)
"""


@pytest.fixture
def run_tool(tmp_path, monkeypatch, capsys):
    """Runs the tool in this process; returns what it printed."""
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def run_tool(*arguments):
        load_tool('model_converters/plain_to_mmkw').main(['config.py', *arguments])
        return capsys.readouterr().out

    return run_tool


def test_tool_writes_a_checkpoint_that_loads_strictly(tmp_path, run_tool):
    plain = plain_classifier('ResNet')
    torch.save(renamed(plain.state_dict(), TORCHVISION_RESNET), tmp_path / 'plain.pth')
    shown = run_tool('plain.pth', 'kw.pth')
    assert 'starts fresh: head.fc\n' in shown
    assert 'not used: fc.weight, fc.bias\n' in shown
    names = 'names: backbone of OpenMMLab, or ResNet of torchvision or timm'
    assert f'plain.pth ({names}): 120 tensors -> ' in shown

    checkpoint = load_checkpoint(tmp_path / 'kw.pth')
    assert checkpoint['meta']['source'] == 'plain.pth'
    assert 'timm' in checkpoint['meta']['source_format']
    network = kw_classifier('ResNet', num_classes=4)
    network.load_state_dict(checkpoint['state_dict'], strict=True)
    assert mmkw.get_temperature(network) == 1
    assert_same_outputs(plain.backbone, network.backbone)
    # MMPretrain's initialisation of a classifier, not torch's.
    assert network.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)
    # As MMEngine's `load_from` does it.
    load_with_mmengine(network, str(tmp_path / 'kw.pth'), strict=True)


def test_dry_run_shows_the_mapping_and_writes_nothing(tmp_path, run_tool):
    torch.save(plain_classifier('ResNet').state_dict(), tmp_path / 'plain.pth')
    options = ['--cfg-options', 'model.backbone.budget=2']
    lines = run_tool('plain.pth', '--dry-run', *options).splitlines()
    assert 'backbone.conv1.weight -> backbone.conv1.weight' in lines
    cells = 'backbone.warehouses.layer1.cells: 9 cells, 18 to 34'
    assert f'backbone.layer1.0.conv2.weight -> {cells}' in lines
    assert {path.name for path in tmp_path.iterdir()} == {'config.py', 'plain.pth'}


def test_tool_says_in_one_line_what_is_wrong(tmp_path, run_tool):
    torch.save(dict(weight=torch.zeros(3)), tmp_path / 'other.pth')
    with pytest.raises(SystemExit) as error:
        run_tool('other.pth', 'kw.pth')
    assert '\n' not in str(error.value)
    assert str(error.value).startswith(
        'error: other.pth cannot start the network: its names are of'
    )
    assert not (tmp_path / 'kw.pth').exists()


def test_missing_and_unsafe_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing.pth does not exist'):
        convert_plain(kw_classifier('ResNet'), tmp_path / 'missing.pth')

    hostile = dict(state_dict={}, args=creates(tmp_path / 'ran'))
    torch.save(hostile, tmp_path / 'payload.pth')
    with pytest.raises(mmkw.checkpoints.UnsafeCheckpointError):
        convert_plain(kw_classifier('ResNet'), tmp_path / 'payload.pth', tmp_path / 'kw.pth')
    assert {path.name for path in tmp_path.iterdir()} == {'payload.pth'}


@pytest.mark.slow
def test_annealed_epoch_on_digits_beats_scratch(tmp_path):
    """The demo's classifier: plain training, conversion, then an epoch each from it and scratch."""
    config = ROOT / 'configs' / 'demo' / 'kw-resnet18-1x_digits.py'
    tools = ROOT / 'tools'
    make = ['--renderings', '2', '--train-scenes', '1', '--val-scenes', '1', 'data']
    run_python(tmp_path, tools / 'dataset_converters' / 'digits.py', *make)
    plain = ['model.backbone.budget=None']
    # Annealed over the first third of the 180 iterations.
    annealed = ['custom_hooks.0.iters=60']

    def accuracy(name, training, testing=()):
        data = [
            f'{split}_dataloader.dataset.data_root=data/imagenet' for split in ('train', 'test')
        ]
        options = ['--work-dir', name, '--cfg-options', *data]
        train = [tools / 'train.py', config, '--no-validate', *options, *training]
        run_python(tmp_path, *train)
        test = [tools / 'test.py', config, f'{name}/epoch_1.pth', *options, *testing]
        return float(re.findall(r'accuracy/top1: ([\d.]+)', run_python(tmp_path, *test))[-1])

    accuracy('plain', [*plain, 'custom_hooks=[]'], plain)
    run_python(tmp_path, TOOL, config, 'plain/epoch_1.pth', 'start.pth')
    scratch = accuracy('scratch', annealed)
    warm = accuracy('warm', [*annealed, 'load_from=start.pth'])
    print(f'one annealed epoch from scratch {scratch:.1f} %, from the plain network {warm:.1f} %')
    assert warm > scratch + 10


def run_python(folder, *command):
    run = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


@pytest.mark.parametrize(
    ('network', 'plain'),
    [
        (
            dict(type='KWResNet', depth=18, stem_channels=8, base_channels=8),
            dict(type='ResNet', depth=34, stem_channels=8, base_channels=8),
        ),
        (
            dict(type='KWResNet', depth=50, stem_channels=8, base_channels=8, expansion=4),
            dict(type='ResNet', depth=101, stem_channels=8, base_channels=8, expansion=4),
        ),
        (
            dict(type='KWConvNeXt', arch=dict(depths=[1] * 4, channels=[16] * 4)),
            dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[16] * 4)),
        ),
    ],
    ids=['ResNet34', 'ResNet101', 'ConvNeXt'],
)
def test_bare_backbones_refuse_deeper_ones(network, plain):
    network = MODELS.build(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = MODELS.build(dict(plain, type=f'mmpretrain.{plain["type"]}')).state_dict()
    with pytest.raises(ValueError, match='no place for its .*another architecture or depth'):
        warm_start(network, plain)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_name_with_and_without_module_is_refused():
    network = MODELS.build(dict(type='KWResNet', depth=18, stem_channels=8, base_channels=8))
    plain = ResNet(18, stem_channels=8, base_channels=8).state_dict()
    plain['module.conv1.weight'] = plain['conv1.weight'] + 1
    with pytest.raises(ValueError, match="both 'conv1.weight' and 'module.conv1.weight'"):
        warm_start(network, plain)
