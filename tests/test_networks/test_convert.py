"""One verb for all methods, against the layers that it puts in and a method of the test's own."""

import inspect
import re
from dataclasses import fields

import mmcv.ops  # noqa: F401
import mmdet.models  # noqa: F401
import pytest
import torch
from mmcv.cnn import build_conv_layer
from timm.layers.std_conv import StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torchvision.models import resnet18
from toy_method import Toy

import mmkw
from mmkw.methods import METHODS, DynamicLayer
from mmkw.networks import NetworkPlan

IMAGES = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIGS = {name: method() for name, method in METHODS.items()}


def network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def dynamic(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, DynamicLayer)]


@pytest.mark.parametrize('name', CONFIGS)
def test_options_are_those_of_the_layers(name):
    """Names and defaults, but for options of the whole network."""
    method = CONFIGS[name]
    assert set(method.of_network) <= {field.name for field in fields(method)}
    for layer in method.layers.values():
        arguments = inspect.signature(layer).parameters
        plain = inspect.signature(nn.Conv3d if hasattr(layer, 'plain_type') else nn.Linear)
        defaults = {k: v.default for k, v in arguments.items() if v.default is not v.empty}
        own = {k: v for k, v in defaults.items() if k not in plain.parameters}
        assert own == method.layer_options()


@pytest.mark.parametrize('name', CONFIGS)
def test_every_method_converts_every_layer_that_it_has(name):
    method = CONFIGS[name]
    plain = network()
    plan = mmkw.plan(plain, method)
    assert not dynamic(plain)
    expected = ['0', '2', '4', *(['7'] if 0 in method.layers else [])]
    assert list(plan) == expected
    converted = mmkw.convert(plain, method)
    assert converted is plain and dynamic(converted) == expected
    assert {type(layer) for layer in map(converted.get_submodule, expected)} == {*plan.values()}
    assert plan.parameters == parameters(converted)
    assert f'{plan.parameters:,}' in str(plan) and type(method).__name__ in str(plan)
    converted(IMAGES).sum().backward()


@pytest.mark.parametrize('name', CONFIGS)
def test_inputs_leave_the_stem_and_single_positions_plain(name):
    if name == 'KernelWarehouse':
        method = mmkw.KernelWarehouse(max_attention=100)
        assert isinstance(mmkw.plan(network(), method, IMAGES), NetworkPlan)
    else:
        method = CONFIGS[name]
        assert "sees the network's own input: 0" in str(mmkw.plan(network(), method, IMAGES))
    converted = mmkw.convert(network(), method, IMAGES)
    assert dynamic(converted) == ['2', '4']
    converted(IMAGES)


SPECIAL = {
    'ConvWS': lambda: build_conv_layer(dict(type='ConvWS'), 8, 8, 3, padding=1),
    'ConvAWS': lambda: build_conv_layer(dict(type='ConvAWS'), 8, 8, 3, padding=1),
    'SAC': lambda: build_conv_layer(dict(type='SAC', use_deform=True), 8, 8, 3, padding=1),
    'BiT': lambda: StdConv2d(8, 8, 3, padding=1),
    'parametrized spectral norm': lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    'parametrized weight norm': lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    'spectral norm': lambda: spectral_norm(nn.Conv2d(8, 8, 3)),
    'pruned': lambda: prune.random_unstructured(nn.Conv2d(8, 8, 3), 'weight', 0.5),
}


@pytest.mark.parametrize('inputs', [None, IMAGES], ids=['', 'inputs'])
@pytest.mark.parametrize('method', [mmkw.ODConv(), mmkw.KernelWarehouse(max_attention=10)])
@pytest.mark.parametrize('special', SPECIAL)
def test_layers_that_compute_something_else_stay_plain(special, method, inputs):
    """By themselves, with the reason; named, they are refused."""
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3), SPECIAL[special](), *(nn.Conv2d(8, 8, 3) for _ in range(2))
    )
    before = module[1]
    with pytest.raises(ValueError, match="layer '1' is a"):
        mmkw.convert(module, method, inputs, layers=['1'])
    table = str(mmkw.plan(module, method, inputs))
    assert re.search(
        '(is no plain convolution or linear layer|computed from others): 1$', table, re.M
    )
    mmkw.convert(module, method, inputs)
    assert module[1] is before
    assert not isinstance(before, DynamicLayer) and isinstance(module[2], DynamicLayer)


def test_patterns():
    method = mmkw.ODConv(num_kernels=2)
    converted = mmkw.convert(network(), method, layers=['[024]'], exclude=['2'])
    assert dynamic(converted) == ['0', '4'] and converted[4].num_kernels == 2


def test_layers_share_the_routing_of_a_block():
    plain = resnet18()
    method = mmkw.CondConv(num_kernels=2, share_routing_in=['layer4.1'])
    plan = mmkw.plan(plain, method, layers=['layer4.1.conv?'])
    block = mmkw.convert(plain, method, layers=['layer4.1.conv?']).layer4[1]
    assert block.conv1.attention is not None and block.conv2.attention is None
    assert plan.parameters == parameters(plain)
    plain(IMAGES[:, :3])


def test_a_plan_of_ones_own():
    plan = {'body': dict(layers=['2', '4'], cell_ratio=1 / 2), 'head': dict(layers=['7'], budget=2)}
    method = mmkw.KernelWarehouse(attention=dict(reduction=1 / 8), plan=plan)
    shown = mmkw.plan(network(), method, IMAGES)
    assert shown['body'].attention == shown['head'].attention == mmkw_attention(1 / 8)
    converted = mmkw.convert(network(), method)
    assert shown.parameters == parameters(converted)
    assert list(converted.warehouses) == ['body', 'head']
    assert converted[2].warehouse is converted[4].warehouse


def mmkw_attention(reduction):
    return mmkw.methods.kernel_warehouse.AttentionConfig(reduction=reduction)


@pytest.mark.parametrize(
    ('method', 'options', 'error', 'message'),
    [
        (mmkw.ODConv, {}, TypeError, r'such as mmkw.ODConv\(num_kernels=4\), but got <class'),
        (mmkw.ODConv(), dict(layers=['7']), ValueError, "'7' is a Linear, .* only ODConv2d"),
        (Toy(), dict(layers=['x']), ValueError, "'x' matches no"),
        (mmkw.ODConv(), dict(exclude=['[024]']), ValueError, 'replaces no layer of Sequential'),
        (mmkw.ODConv(num_kernels=0), {}, ValueError, "layer '0': .*num_kernels=0"),
        (
            mmkw.KernelWarehouse(plan={'a': dict(layers=['2'])}),
            dict(layers=['2']),
            ValueError,
            'plan names its layers',
        ),
    ],
)
def test_errors(method, options, error, message):
    plain = network()
    with pytest.raises(error, match=message):
        mmkw.convert(plain, method, **options)
    assert not dynamic(plain)
