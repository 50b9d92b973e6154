"""What holds for every dynamic convolution: one contract, run over all methods."""

import copy
import pickle
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from by_hand import (
    cgc,
    cond_conv,
    convolve,
    dcd,
    dy_conv,
    fd_conv,
    gradients,
    kernel_warehouse,
    od_conv,
    weight_net,
)
from mmdet.models.necks import FPN
from mmengine.registry import MODELS
from torch import nn
from toy_method import toy

import mmkw
from mmkw.methods import (
    DYConv2d,
    DynamicLayer,
    ODConv2d,
    set_temperature,
)
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.ops import forced_route

EQUATIONS = {
    'ODConv': od_conv,
    'DYConv': dy_conv,
    'CondConv': cond_conv,
    'DCD': dcd,
    'FDConv': fd_conv,
    'CGC': cgc,
    'WeightNet': weight_net,
    'KernelWarehouse': kernel_warehouse,
    'Toy': toy,
}
METHODS = {method.layers[2].__name__: method for method in mmkw.methods.METHODS.values()}
GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=2, stride=2, dilation=2),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=(1, 3), padding=(0, 1)),
    dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, padding=1, stride=2, groups=8),
]
CONV = dict(kernel_size=3, padding=1, stride=2)
every_method = pytest.mark.parametrize('method', METHODS)
# DCD has no kernel for each sample; CGC and WeightNet have one that is not mixed from a few.
UNMIXED = {'DCDConv2d', 'CGConv2d', 'WeightNetConv2d'}
kernel_method = pytest.mark.parametrize('method', sorted(METHODS.keys() - {'DCDConv2d'}))
annealed_method = pytest.mark.parametrize(
    'method', [name for name, method in METHODS.items() if method.temperature_range is not None]
)
mixing_method = pytest.mark.parametrize('method', sorted(METHODS.keys() - UNMIXED))


def make(method, in_channels=8, out_channels=8, dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = METHODS[method].layers[2](in_channels, out_channels, **options).to(dtype)
    for name, parameter in layer.named_parameters():
        if name.endswith('bias') or 'norm' in name:
            nn.init.normal_(parameter, std=0.3)
    temperatures = METHODS[method].temperature_range
    if temperatures is not None:
        # Strictly between the ends of its annealing.
        set_temperature(layer, 0.3 if temperatures.high == 1 else 2.5)
    return layer


def random_input(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def refusal(method, geometry):
    """The error of a geometry that a method cannot have, or None."""
    groups = geometry.get('groups', 1)
    if method in ('DCDConv2d', 'CGConv2d') and groups > 1:
        return f'{method} has no groups, but got groups='
    if method == 'WeightNetConv2d' and groups == 8:
        return 'parts that divide multiplier=2 and the 9 elements .* but got parts=2'
    return None


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@every_method
def test_equals_its_equations(method, training, geometry):
    """Forward and all gradients."""
    message = refusal(method, geometry)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            make(method, **geometry)
        return
    layer = make(method, **geometry).train(training)
    x = random_input(3, 8, 6, 7)
    plain = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)

    def by_hand(x):
        y = EQUATIONS[METHODS[method].__name__](layer, x, dict(plain, groups=layer.groups))
        return y + layer.bias.view(-1, 1, 1)

    expected = gradients(layer, x, by_hand)
    torch.testing.assert_close(gradients(layer, x, layer), expected, rtol=1e-8, atol=1e-9)


@every_method
def test_shape_is_that_of_the_plain_convolution(method):
    layer = make(method, 8, 12, **CONV)
    plain = nn.Conv2d(8, 12, **CONV).double()
    for size in ((1, 1), (2, 9), (8, 8)):
        x = random_input(4, 8, *size)
        assert layer(x).shape == plain(x).shape


@kernel_method
def test_kernels_are_those_that_it_convolves_with(method):
    groups = 1 if method == 'CGConv2d' else 2
    layer = make(method, bias=False, groups=groups, **CONV).eval()
    x = random_input(3, 8, 6, 7)
    kernels = layer.kernels(x)
    assert kernels.shape == (3, *layer.kernel_shape)
    expected = convolve(x, kernels, dict(stride=2, padding=1, groups=groups))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
@kernel_method
def test_padding_modes(method, mode):
    layer = make(method, bias=False, kernel_size=3, padding=(1, 2), padding_mode=mode).eval()
    x = random_input(2, 8, 5, 6)
    expected = convolve(F.pad(x, (2, 2, 1, 1), mode), layer.kernels(x), {})
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ('size', 'options'),
    [
        ((2, 2), dict(kernel_size=3)),
        ((1, 5), dict(kernel_size=3)),
        ((2, 9), dict(kernel_size=3, dilation=2)),
        ((0, 5), dict(kernel_size=1)),
        ((0, 5), dict(kernel_size=3, padding=2)),
    ],
    ids=str,
)
@kernel_method
def test_image_smaller_than_the_kernel(method, size, options):
    """An error where the plain layer has one; it names sizes."""
    layer, plain = make(method, **options), nn.Conv2d(8, 8, **options).double()
    with pytest.raises(RuntimeError):
        plain(random_input(2, 8, *size))
    message = rf'{method} cannot convolve an input of size \({size[0]}, {size[1]}\).*larger images'
    with pytest.raises(RuntimeError, match=message):
        layer(random_input(2, 8, *size))
    fitting = random_input(2, 8, 5, 5)
    assert layer(fitting).shape == plain(fitting).shape


@every_method
def test_gradcheck(method):
    layer = make(method, 4, 4, kernel_size=3, padding=1)
    x = random_input(2, 4, 3, 4).requires_grad_()
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    inputs = (x, *parameters.values())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_method
def test_empty_batch(method):
    layer = make(method, **CONV).eval()
    x = random_input(0, 8, 6, 6).requires_grad_()
    y = layer(x)
    assert y.shape == (0, 8, 3, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape


@every_method
def test_batch_of_one_equals_its_place_in_a_batch(method):
    layer = make(method, **CONV).eval()
    x = random_input(3, 8, 6, 6)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


@pytest.mark.parametrize('method', ['ODConv2d', 'KWConv2d'])
def test_batch_of_one_in_training_takes_running_statistics(method):
    """As in evaluation, and they stay as they are."""
    layer = make(method, **CONV)
    layer(random_input(4, 8, 6, 6))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = random_input(1, 8, 6, 6)
    y = layer(x)
    y.sum().backward()
    assert layer.attention.norm.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    torch.testing.assert_close(y, layer.eval()(x))


def test_batch_of_one_that_batch_norms_cannot_train_on():
    pixel = random_input(1, 8, 1, 1)
    for method in ('DCDConv2d', 'CGConv2d'):
        layer = make(method, kernel_size=1)
        with pytest.raises(ValueError, match=rf'norms of {method} .*2 samples .*norm_eval=True'):
            layer(pixel)
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.eval()
        assert layer(pixel).shape == pixel.shape


@every_method
def test_autocast(method):
    layer = make(method, dtype=torch.float32, **CONV).eval()
    x = random_input(3, 8, 6, 6, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.03 * expected.norm()
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.usefixtures('blocks')
@pytest.mark.parametrize('geometry', [CONV, dict(kernel_size=1)], ids=str)
@every_method
def test_channels_last(method, geometry):
    layer = make(method, **geometry).eval()
    x = random_input(3, 8, 16, 16)
    expected = gradients(layer, x, layer)
    layer.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(layer, x, layer), expected)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@every_method
def test_copies(method, copied):
    layer = make(method, **CONV)
    x = random_input(3, 8, 6, 6)
    layer(x)
    twin = copied(layer).eval()
    layer.eval()
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.allclose(twin(x), layer(x))


@every_method
def test_state_dict_round_trip(method):
    source = make(method, **CONV)
    x = random_input(3, 8, 6, 6)
    source(x)
    torch.manual_seed(1)
    target = METHODS[method].layers[2](8, 8, **CONV).double()
    target.load_state_dict(source.state_dict(), strict=True)
    torch.testing.assert_close(target.eval()(x), source.eval()(x), rtol=0, atol=0)


def with_temperature(layer, value, dtype=torch.float32):
    """Its state dict, but for the temperature."""
    state_dict = layer.state_dict()
    (key,) = (key for key in state_dict if key.endswith('temperature'))
    return {**state_dict, key: torch.tensor(value, dtype=dtype)}


@pytest.mark.filterwarnings('ignore:for .*copying from a non-meta parameter')
@annealed_method
def test_temperature_outside_the_range_is_refused(method):
    """When it is set, and when it is loaded in whatever way."""
    layer = make(method, **CONV)
    before = mmkw.get_temperature(layer)
    allowed = METHODS[method].temperature_range
    wrong = [allowed.low - 0.5, float('nan'), float('inf')]
    wrong += [allowed.high + 0.5] * (allowed.high < float('inf'))
    for value in (*wrong, '1', None, True):
        with pytest.raises(ValueError, match=rf'temperature must be .* but got {value!r}'):
            mmkw.set_temperature(layer, value)
    for value, dtype in product(wrong, (torch.float32, torch.float64, torch.bfloat16)):
        state_dict = with_temperature(layer, value, dtype)
        for options in ({}, dict(strict=False), dict(assign=True)):
            for target in (layer, make(method, **CONV).to('meta')):
                with pytest.raises(ValueError, match='temperature of the checkpoint must be'):
                    target.load_state_dict(state_dict, **options)
    assert mmkw.get_temperature(layer) == before


@annealed_method
def test_loading_takes_temperatures_of_other_types_and_meta_tensors(method):
    layer = make(method, **CONV)
    layer.load_state_dict(with_temperature(layer, 1, torch.int64))
    assert mmkw.get_temperature(layer) == 1
    shell = make(method, **CONV).to('meta')
    shell.load_state_dict(shell.state_dict(), assign=True)
    shell.load_state_dict(layer.state_dict(), assign=True)
    assert mmkw.get_temperature(shell) == 1


@every_method
def test_initialisation_is_found_again(method):
    layer = make(method, **CONV)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    layer.reset_parameters()
    after = dict(layer.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    assert not layer.bias.any()


@every_method
def test_device_and_dtype(method):
    layer = METHODS[method].layers[2](8, 8, **CONV, device='meta', dtype=torch.float64)
    assert {p.device.type for p in layer.parameters()} == {'meta'}
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    layer.to_empty(device='cpu')
    layer.load_state_dict(make(method, **CONV).state_dict(), strict=True)
    x = random_input(3, 8, 6, 6)
    torch.testing.assert_close(layer.eval()(x), make(method, **CONV).eval()(x))


@every_method
def test_is_one_node_of_a_graph(method):
    torch.manual_seed(0)
    layers = [METHODS[method].layers[2](4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    network = nn.Sequential(*layers, METHODS[method].layers[2](8, 8, 3, padding=1)).eval()
    graph = torch.fx.symbolic_trace(network)
    assert [node.target for node in graph.graph.nodes][1:-1] == ['0', '1', '2', '3']
    for size in (6, 9):
        x = torch.randn(2, 4, size, size)
        torch.testing.assert_close(graph(x), network(x), rtol=0, atol=0)


def export(layer, x, strict):
    any_size = torch.export.Dim.DYNAMIC
    sizes = ({0: any_size, 2: any_size, 3: any_size},)
    return torch.export.export(layer, (x,), dynamic_shapes=sizes, strict=strict).module()


@every_method
@pytest.mark.parametrize(
    'record',
    [
        torch.jit.trace,
        partial(export, strict=False),
        # By default, the tests of torch.compile record layers in this way.
        pytest.param(partial(export, strict=True), marks=pytest.mark.slow),
    ],
    ids=['traced', 'exported', 'strictly'],
)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_recordings_serve_other_sizes(method, record):
    """Traced or exported once, a layer computes batches and maps of other sizes."""
    layer = make(method, **CONV).eval()
    recorded = record(layer, random_input(3, 8, 16, 16))
    for shape in [(1, 8, 16, 16), (6, 8, 12, 20)]:
        images = random_input(*shape)
        torch.testing.assert_close(recorded(images), layer(images))


@every_method
def test_conv_cfg_of_a_neck(method):
    torch.manual_seed(0)
    neck = FPN([8, 16], 8, num_outs=3, conv_cfg=dict(type=method))
    neck.init_weights()
    layers = [module for module in neck.modules() if isinstance(module, DynamicLayer)]
    assert len(layers) == 4
    outputs = neck([torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)])
    assert [tuple(y.shape) for y in outputs] == [(2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 2, 2)]
    assert all(0.05 < y.std() < 20 for y in outputs[:2]), 'kernels keep their initialisation'
    sum(y.square().mean() for y in outputs).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


@every_method
def test_dynamic_backbone(method):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=16, stem_channels=16)
    config = dict(type='DynamicBackbone', backbone=backbone, layer=dict(type=method))
    network = MODELS.build(dict(config, layers=['layer[34].*.conv?'], exclude=['*.0.*']))
    replaced = [name for name, m in network.named_modules() if isinstance(m, DynamicLayer)]
    assert replaced == ['layer3.1.conv1', 'layer3.1.conv2', 'layer4.1.conv1', 'layer4.1.conv2']
    assert type(network.layer4[1].conv2) is METHODS[method].layers[2]
    assert network(torch.randn(2, 3, 64, 64))[0].shape == (2, 128, 2, 2)


@every_method
def test_wrong_input_is_named(method):
    layer = make(method, **CONV)
    for shape in ((2, 4, 6, 6), (8, 6, 6)):
        with pytest.raises(ValueError, match=rf'{method} expects .*\(N, 8, H, W\).*got'):
            layer(random_input(*shape))


@pytest.mark.parametrize(
    ('method', 'options', 'message'),
    [
        *((method, dict(num_kernels=0), f'{method} needs a positive whole .*num_kernels=0')
          for method in ('ODConv2d', 'DYConv2d', 'CondConv2d')),
        ('ODConv2d', dict(num_kernels=2.5), 'num_kernels=2.5'),
        ('ODConv2d', dict(reduction=0), 'reduction must be a positive number, but got 0'),
        ('DYConv2d', dict(reduction=-1), 'reduction must be a positive number, but got -1'),
        ('DCDConv2d', dict(padding=0), 'padding that keeps the positions .* got padding=0'),
        ('CondConv2d', dict(groups=3), 'divisible by groups'),
        ('CGConv2d', dict(group_channels=0), 'group_channels must be a positive integer, .* 0'),
        ('CGConv2d', dict(group_channels=3), 'groups of 3, .* but got 8 and 8 channels'),
        ('WeightNetConv2d', dict(multiplier=0), 'multiplier must be a positive integer, .* 0'),
        ('WeightNetConv2d', dict(multiplier=3), 'divide multiplier=3 .* but got parts=2'),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(method, options, message):
    with pytest.raises(ValueError, match=message):
        make(method, **{**CONV, **options})


@pytest.mark.parametrize('method', ['ODConv2d', 'DYConv2d', 'CondConv2d'])
def test_plain_kernels_are_refused(method):
    """Non-strict loading, MMEngine's default, included."""
    layer = make(method, **CONV)
    with pytest.raises(ValueError, match='plain'):
        layer.load_state_dict(nn.Conv2d(8, 8, **CONV).state_dict(), strict=False)


# Degenerate cases, in which a method is the plain convolution


def plain(layer, x, weight):
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def test_one_kernel_is_the_plain_convolution():
    x = random_input(3, 8, 6, 6)
    dy = make('DYConv2d', num_kernels=1, **CONV)
    torch.testing.assert_close(dy(x), plain(dy, x, dy.weight[0]))
    cond = make('CondConv2d', num_kernels=1, **CONV)
    nn.init.zeros_(cond.attention.fc.weight)
    nn.init.constant_(cond.attention.fc.bias, 100)
    torch.testing.assert_close(cond(x), plain(cond, x, cond.weight[0]))
    od = make('ODConv2d', num_kernels=1, **CONV)
    assert od.attention.kernel_fc is None
    for head in (od.attention.channel_fc, od.attention.filter_fc, od.attention.spatial_fc):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 100)
    torch.testing.assert_close(od(x), plain(od, x, od.weight[0]))


def test_od_conv_without_heads():
    """Depthwise layers have no filter attention, pointwise ones no spatial attention."""
    depthwise = make('ODConv2d', groups=8, **CONV).attention
    pointwise = make('ODConv2d', kernel_size=1).attention
    assert depthwise.filter_fc is None and depthwise.spatial_fc is not None
    assert pointwise.spatial_fc is None and pointwise.filter_fc is not None
    static = make('ODConv2d', kernel_size=1, num_kernels=1).eval()
    x = random_input(2, 8, 3, 3)
    torch.testing.assert_close(static(x) - static.bias.view(-1, 1, 1), od_conv(static, x, {}))


def test_dcd_with_constant_attention_is_the_plain_convolution():
    layer = make('DCDConv2d', **CONV)
    nn.init.zeros_(layer.attention.squeeze.weight)  # scales of hsig(0) = 1
    nn.init.zeros_(layer.p)
    x = random_input(3, 8, 6, 6)
    torch.testing.assert_close(layer(x), plain(layer, x, layer.weight))


def test_constant_gates_and_attentions_scale_the_plain_convolution():
    x = random_input(3, 8, 6, 6)
    cgc = make('CGConv2d', **CONV)
    for decode in (cgc.attention.in_decode, cgc.attention.out_decode):
        nn.init.zeros_(decode.weight)
    torch.testing.assert_close(cgc(x), plain(cgc, x, cgc.weight / 2))
    net = make('WeightNetConv2d', **CONV)
    nn.init.zeros_(net.attention.fc.weight)
    nn.init.zeros_(net.attention.fc.bias)
    torch.testing.assert_close(net(x), plain(net, x, net.weight.view(net.kernel_shape) / 2))


def test_routing_of_a_block():
    """All layers of a block use the routing weights of its input."""
    config = dict(
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
        layer=dict(type='CondConv2d', num_kernels=3),
        layers=['layer4.1.conv?'],
        share_routing_in=['layer4.1'],
    )
    network = MODELS.build(config).double()
    network.eval()
    first, second = network.layer4[1].conv1, network.layer4[1].conv2
    assert second.attention is None
    seen = {}
    for name, layer in (('first', first), ('second', second)):
        layer.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (i[0], o)}))
    images = random_input(2, 3, 64, 64)
    network(images)
    routing = first.attention(seen['first'][0].mean((2, 3)))
    (x, y), weight = seen['second'], second.weight
    expected = convolve(x, torch.einsum('nk,k...->n...', routing, weight), dict(padding=1))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(copy.deepcopy(network)(images), network(images))
    with pytest.raises(RuntimeError, match='layer4.1.conv2.* uses the routing of .*layer4.1.conv1'):
        second(random_input(5, 64, 4, 4))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(layer=dict(type='Conv2d')), "one of .*ODConv2d, .* but got 'Conv2d'"),
        (dict(layer=dict(num_kernels=4)), 'must have a type'),
        (dict(layer=dict(type='DYConv2d', experts=2)), "DYConv2d has no argument 'experts'"),
        (dict(layers=['layer5.*']), "'layer5.*' matches no"),
        (
            dict(exclude=['layer4.*']),
            r"no layer of ResNet: layers=\['layer4.*exclude=.* leave none",
        ),
        (dict(layers=['layer4.0.bn1']), "layer 'layer4.0.bn1' is a BatchNorm2d; dynamic layers"),
        (dict(share_routing_in=['layer4']), "DYConv2d has no argument 'share_routing_in'"),
        (
            dict(layer=dict(type='CondConv2d'), share_routing_in=['layer9']),
            "names 'layer9', but ResNet has no such module",
        ),
        (dict(only_attentions_train_in=['layer9']), "'layer9', but ResNet has no such module"),
        (
            dict(layer=dict(type='CondConv2d'), share_routing_in=['layer1']),
            "'layer1', in which no layer becomes one of CondConv",
        ),
    ],
)
def test_errors_of_the_builder(options, message):
    config = dict(
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        layer=dict(type='DYConv2d'),
        layers=['layer4.*.conv?'],
    )
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(config, **options))


@pytest.mark.parametrize(
    ('layer', 'options', 'message'),
    [
        (
            KWConv2d,
            dict(attention=dict(reduction=1 / 2)),
            r'shape \(.*32\) in the checkpoint, but has shape \(.*16\)',
        ),
        (KWConv2d, dict(attention=dict(norm_layer='LayerNorm')), 'norm.running_mean is missing'),
        (KWConv2d, dict(attention=dict(od_heads=True)), 'channel_fc.weight has .* but is missing'),
        (
            ODConv2d,
            dict(reduction=1 / 2),
            r'shape \(.*32\) in the checkpoint, but has shape \(.*16\)',
        ),
        (
            DYConv2d,
            dict(reduction=1 / 2),
            r'shape \(.*32\) in the checkpoint, but has shape \(.*16\)',
        ),
    ],
)
def test_checkpoint_of_another_attention_is_refused(layer, options, message):
    """Strictly and not: MMEngine would leave such attentions random, and log it."""
    one, other = layer(64, 8, 3), layer(64, 8, 3, **options)
    with pytest.raises(ValueError, match=message):
        one.load_state_dict(other.state_dict(), strict=False)
    with pytest.raises(ValueError, match='other options'):
        other.load_state_dict(one.state_dict())


@mixing_method
def test_routes_agree(method):
    layer = make(method, **CONV)
    x = random_input(3, 8, 6, 6)
    with forced_route('reference'):
        expected = gradients(layer, x, layer)
    with forced_route('blockwise'):
        torch.testing.assert_close(gradients(layer, x, layer), expected)


@pytest.mark.parametrize(
    ('method', 'layers', 'parameters'),
    [
        ('CGConv2d', ['conv1', 'layer*.conv?'], 11_721_791),
        ('WeightNetConv2d', ['layer*.conv?'], 11_948_376),
    ],
)
def test_parameters_of_a_resnet18(method, layers, parameters):
    """With 1000 classes."""
    config = dict(type='mmpretrain.ResNet', depth=18)
    config = dict(type='DynamicBackbone', backbone=config, layer=dict(type=method), layers=layers)
    found = sum(parameter.numel() for parameter in MODELS.build(config).parameters())
    assert found + 513 * 1000 == parameters
