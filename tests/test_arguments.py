"""Wrong arguments: errors name the class that the user wrote, and what was probably meant."""

import inspect
from functools import partial

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import HOOKS, MODELS, DefaultScope

import mmkw
from mmkw.methods import DynamicLayer
from mmkw.openmmlab.backbones import KWConvNeXt, KWResNet, KWVisionTransformer
from mmkw.openmmlab.hooks import FiniteLossHook, KWAttentionHook, KWTemperatureHook


@pytest.fixture(autouse=True)
def scope():
    """Heads look up their losses in MMPretrain's, whatever scope another test has left."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def registered(registry):
    """The classes and builders of mmkw by the names that configs give them."""
    modules = registry.module_dict.items()
    return {name: module for name, module in modules if module.__module__.startswith('mmkw.')}


def arguments_of(module):
    parameters = inspect.signature(module).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


@pytest.mark.parametrize(
    ('registry', 'name'),
    [(registry, name) for registry in (MODELS, HOOKS) for name in registered(registry)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_argument_is_guessed_from_a_typo(registry, name):
    for argument in arguments_of(registry.get(name)):
        typo = argument + argument[-1]
        with pytest.raises(TypeError) as error:
            registry.build({'type': name, typo: 1})
        assert str(error.value) == f'{name} has no argument {typo!r}; did you mean {argument!r}?'


CONVOLUTIONS = [
    name
    for name, module in registered(MODELS).items()
    if inspect.isclass(module) and issubclass(module, DynamicLayer) and 'Conv' in name
]


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_conv_cfg(name):
    with pytest.raises(TypeError, match=f"{name} has no argument 'nmu'; its arguments are in_ch"):
        ConvModule(8, 8, 3, conv_cfg=dict(type=name, nmu=1))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(type='KWResNet', depth=18, frozen_stage=1), "KWResNet .* mean 'frozen_stages'"),
        (dict(type='KWMobileNetV2', frozen_stage=1), "KWMobileNetV2 .* mean 'frozen_stages'"),
        (dict(type='KWConvNeXt', frozen_stage=1), "KWConvNeXt .* mean 'frozen_stages'"),
        (dict(type='KWVisionTransformer', frozen_stage=1), "KWVision.* mean 'frozen_stages'"),
        (dict(type='RecalibratedResNet', frozen_stage=1), "Recalib.* mean 'frozen_stages'"),
        (dict(type='KWLinearClsHead', los=1), "KWLinearClsHead .* mean 'loss'"),
        (dict(type='DropoutLinearClsHead', los=1), "DropoutLinearClsHead .* mean 'loss'"),
        (dict(type='DynamicLinearClsHead', los=1), "DynamicLinearClsHead .* mean 'loss'"),
    ],
)
def test_arguments_of_the_plain_class(options, message):
    with pytest.raises(TypeError, match=message):
        MODELS.build(options)


RESNET = dict(type='mmpretrain.ResNet', depth=18)
LAYERS = dict(type='DynamicBackbone', backbone=RESNET, layers=['layer*.conv?'])
HEAD = dict(type='DynamicLinearClsHead', num_classes=2, in_channels=8)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(type='KWConvNeXt', attention=dict(reductoin=1)), "attention .* mean 'reduction'"),
        (
            dict(type='KWBackbone', backbone=RESNET, warehouse=dict(buget=1)),
            "warehouse of KWBackbone .* mean 'budget'",
        ),
        (
            dict(type='KWBackbone', backbone=RESNET, plan=dict(a=dict(layer=['layer1.*']))),
            "warehouse 'a' has no argument 'layer'; did you mean 'layers'",
        ),
        (
            dict(LAYERS, layer=dict(type='ODConv2d', num_kernel=2)),
            "layer of DynamicBackbone: ODConv2d .* mean 'num_kernels'",
        ),
        (
            dict(HEAD, layer=dict(type='CondLinear', num_kernel=2)),
            "layer of DynamicLinearClsHead: CondLinear .* mean 'num_kernels'",
        ),
        (
            dict(type='RecalibratedResNet', depth=18, recalibration=dict(type='SE', ratoi=4)),
            "recalibration of RecalibratedResNet .* mean 'ratio'",
        ),
    ],
)
def test_options_in_options(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(options)


def test_subclasses_have_their_own_arguments():
    """Also one that hands on fewer of them."""

    class Narrow(mmkw.KWConv2d):
        def __init__(self, channels):
            super().__init__(channels, channels, kernel_size=3, budget=2)

    class Wide(mmkw.openmmlab.backbones.KWResNet):
        def __init__(self, mine=1, **kwargs):
            super().__init__(18, **kwargs)

    assert len(Narrow(8).warehouse.cells) == 18
    assert Wide(mine=2, budget=2).warehouses
    with pytest.raises(TypeError, match="Wide has no argument 'buget'; did you mean 'budget'"):
        Wide(mine=2, buget=2)


CONVNEXT = dict(arch=dict(depths=[1] * 4, channels=[8, 8, 8, 8]))


@pytest.mark.parametrize(
    ('build', 'name'),
    [
        (partial(mmkw.KWConv2d, 8, 8, 3), 'budget'),
        (partial(mmkw.KWConv2d, 8, 8, 3), 'cell_ratio'),
        (lambda **options: mmkw.KWConv2d(8, 8, 3, attention=options), 'reduction'),
        (lambda **options: mmkw.KWConv2d(8, 8, 3, attention=options), 'basis_ratio'),
        (
            partial(mmkw.fold_attentions, KWResNet(18, stem_channels=8, base_channels=8)),
            'min_saving',
        ),
        (KWResNet, 'depth'),
        (partial(KWConvNeXt, **CONVNEXT), 'blocks_per_warehouse'),
        (KWVisionTransformer, 'blocks_per_warehouse'),
        (partial(mmkw.ODConv2d, 8, 8, 3), 'num_kernels'),
        (partial(mmkw.ODConv2d, 8, 8, 3), 'reduction'),
        (partial(mmkw.DYConv2d, 8, 8, 3), 'reduction'),
        (partial(mmkw.WeightNetConv2d, 8, 8, 3), 'multiplier'),
        (partial(mmkw.WeightNetConv2d, 8, 8, 3), 'reduction'),
        (partial(mmkw.CGConv2d, 8, 8, 3), 'group_channels'),
        (FiniteLossHook, 'interval'),
        (KWAttentionHook, 'interval'),
        (partial(KWAttentionHook, 1), 'map_interval'),
        (KWTemperatureHook, 'epochs'),
        (KWTemperatureHook, 'iters'),
        (partial(KWTemperatureHook, 1), 'begin'),
    ],
)
@pytest.mark.parametrize('value', [True, 'many', float('nan')])
def test_no_number(build, name, value):
    with pytest.raises(ValueError, match=f'{name}.*{value}'):
        build(**{name: value})


@pytest.mark.parametrize('patterns', ['layer1*', True])
def test_patterns_are_a_list(patterns):
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=f"such as .'layer1.'., but got '?{patterns}"):
        mmkw.convert(network, mmkw.KernelWarehouse(), torch.zeros(2, 8, 9, 9), layers=patterns)
