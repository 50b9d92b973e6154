"""Static networks against the dynamic ones, and kernels against those made one by one."""

import copy
import pickle
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import CLASSIFIER, load_tool, refused, write_random_model, write_tiny
from torch import nn
from torch.optim.swa_utils import update_bn

import mmkw
from mmkw.deployment import calibration_loader, load_static, match_norms, mean_kernels, plain_config
from mmkw.methods import (
    CGConv2d,
    CondConv2d,
    CondLinear,
    DCDConv2d,
    DYConv2d,
    ODConv2d,
    WeightNetConv2d,
    share_routing,
)
from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear

SIZE = 32
SMALL_RESNET = dict(depth=18, stem_channels=16, base_channels=16)
SMALL_CONVNEXT = dict(depths=[2, 1, 3, 1], channels=[16, 32, 48, 64])
SMALL_VIT = dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=96)
BACKBONES = dict(
    resnet=dict(type='KWResNet', **SMALL_RESNET),
    resnet_half=dict(type='KWResNet', budget='1/2', **SMALL_RESNET),
    resnet_as_in_mmdet=dict(type='KWResNet', depth=18, dcn=None, init_cfg=None, base_channels=16),
    mobilenet=dict(type='KWMobileNetV2', widen_factor=0.25, budget=2),
    convnext=dict(type='KWConvNeXt', arch=SMALL_CONVNEXT, blocks_per_warehouse=2),
    vit=dict(type='KWVisionTransformer', arch=SMALL_VIT, blocks_per_warehouse=2, img_size=SIZE),
    any=dict(
        type='KWBackbone',
        backbone=dict(type='mmdet.ResNet', **SMALL_RESNET),
        warehouse=dict(budget='1/2'),
        input_shape=(3, SIZE, SIZE),
    ),
    any_efficientnet=dict(
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.EfficientNet', arch='b0'),
        layer=dict(type='KWConv2d'),
        layers=['layers.1.*depthwise_conv.conv', 'layers.2.*depthwise_conv.conv'],
    ),
    layers_of_a_config=dict(
        type='mmpretrain.ResNet', conv_cfg=dict(type='KWConv2d', budget=2), **SMALL_RESNET
    ),
)


def randomise(network):
    """Random values everywhere, in norms, biases and running statistics as well."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not name.endswith('temperature'):
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if name.endswith('running_var') else (noise - 0.4) * 0.3)


def config_of(backbone, **more):
    return Config(dict(default_scope='mmpretrain', model=backbone, **more))


def build(config):
    init_default_scope('mmpretrain')
    network = MODELS.build(copy.deepcopy(config.model)).double()
    network.eval()  # which some backbones do not return from
    return network


def images(count, channels=3, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def outputs(network):
    with torch.no_grad():
        return network(images(3))


@pytest.mark.parametrize('name', BACKBONES)
def test_exact_at_temperature_1(name):
    config = config_of(BACKBONES[name])
    dynamic = build(config)
    randomise(dynamic)
    mmkw.set_temperature(dynamic, 1)
    kernels = mean_kernels(dynamic, [images(2)])
    plain = build(plain_config(config))
    assert not any('mmkw' in type(module).__module__ for module in plain.modules())
    load_static(plain, dynamic, kernels)
    expected = outputs(dynamic)
    assert all(y.std() > 0 for y in expected)
    torch.testing.assert_close(outputs(plain), expected, rtol=1e-10, atol=1e-10)
    # Nothing is left to match.
    norms = match_norms(plain, dynamic, images(3).split(2))
    assert norms == sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    torch.testing.assert_close(outputs(plain), expected, rtol=1e-8, atol=1e-8)


ODD = dict(kernel_size=3, stride=2, padding=1, groups=2)
LAYERS = dict(
    kernel_warehouse=lambda: KWConv2d(4, 6, budget=2, **ODD),
    od_heads=lambda: KWConv2d(4, 6, attention=dict(od_heads=True), **ODD),
    od_conv=lambda: ODConv2d(4, 6, **ODD),
    dy_conv=lambda: DYConv2d(4, 6, **ODD),
    cond_conv=lambda: CondConv2d(4, 6, **ODD),
    weight_net=lambda: WeightNetConv2d(4, 6, **ODD),
    cgc=lambda: CGConv2d(4, 6, 3),
    kw_linear=lambda: KWLinear(6, 4, budget=2),
    cond_linear=lambda: CondLinear(6, 4),
)


@pytest.mark.parametrize('name', LAYERS)
def test_kernels_are_means_over_images(name):
    layer = LAYERS[name]().double().eval()
    randomise(layer)
    x = images(5, layer.attention_channels, 6) + 5 * images(5, layer.attention_channels, 1)
    # Attentions see averages only, at most of 2 x 2 pixels, so that they overlook this change of
    # an image. What it changes in the output is a convolution with the image's kernel.
    change = torch.randn(1, *x.shape[1:-2], 3, 2, 3, 2).double()
    change = (change - change.mean((-3, -1), keepdim=True)).reshape(1, *x.shape[1:])
    if name.endswith('linear'):
        x, change = x[:, 0], change[:, 0]
        change = change - change.mean(1, keepdim=True)
        plain = nn.Linear(6, 4, bias=False)
    else:
        plain = nn.Conv2d(4, 6, bias=False, **(dict(kernel_size=3) if name == 'cgc' else ODD))
    with torch.no_grad():
        changes = [layer(image + change) - layer(image) for image in x.split(1)]
        kernels = mean_kernels(nn.Sequential(layer), x.split(2))
        plain = plain.double()
        plain.weight.copy_(kernels['0'])
        actual = plain(change)
    assert torch.stack(changes).std(0).max() > 1e-3, 'kernels differ'
    torch.testing.assert_close(actual, sum(changes) / 5, rtol=1e-10, atol=1e-12)


def test_shared_routing():
    first, second = CondConv2d(4, 4, 1).double(), CondConv2d(4, 6, 1).double()
    share_routing([first, second])
    x = images(5, 4, 6)
    kernels = mean_kernels(nn.Sequential(first, second), x.split(2))
    expected = 0
    for image in x:
        weights = 1 / (1 + torch.exp(-first.attention.fc(image.mean((1, 2)))))
        expected = expected + sum(w * kernel for w, kernel in zip(weights, second.weight)) / 5
    torch.testing.assert_close(kernels['1'], expected.detach())


def test_a_layer_under_two_names_and_a_head_without_a_bias():
    layer = CondLinear(4, 4, bias=False).double()
    model = nn.ModuleDict(dict(a=layer, b=layer))
    plain = nn.ModuleDict(dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4))).double()
    x = images(2, 4, 4)[:, 0]
    load_static(plain, model, mean_kernels(model, [x], lambda net, batch: net['b'](batch)))
    torch.testing.assert_close(plain['a'].weight, plain['b'].weight)
    expected = layer.kernels(x).mean(0)
    torch.testing.assert_close(plain['b'](x[0]), x[0] @ expected.T)


def test_matched_norms():
    x = images(5, size=8) + 2 * images(5, size=1)
    dynamic, plain = (
        nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).double()
        for conv in (KWConv2d, nn.Conv2d)
    )
    for net in (dynamic, plain):
        net.unused = nn.ModuleList([nn.BatchNorm2d(4)])

    def run(net, batch):
        return net[2](net[1](net[0](batch)))

    randomise(dynamic)
    load_static(plain, dynamic, mean_kernels(dynamic, x.split(2), run))
    unused = plain.unused[0].running_mean.clone()

    def moments(net):
        y = run(net.eval(), x).transpose(0, 1).flatten(1)
        return torch.stack([y.mean(1), y.std(1)])

    assert (moments(plain) / moments(dynamic) - 1).abs().max() > 1e-2
    assert match_norms(plain, dynamic, x.split(2), run) == 1
    torch.testing.assert_close(moments(plain), moments(dynamic))
    assert plain.unused[0].running_mean.equal(unused)


def test_norms_of_the_images_are_estimated_anew():
    torch.manual_seed(0)
    x = images(4, size=24) + 2 * images(4, size=1)
    dynamic, plain = (
        nn.Sequential(
            conv(3, 4, 3),
            nn.BatchNorm2d(4, eps=1e-12),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4, eps=1e-12),
        ).double()
        for conv in (KWConv2d, nn.Conv2d)
    )
    update_bn([x], dynamic)
    load_static(plain, dynamic, mean_kernels(dynamic, [x]))
    expected = copy.deepcopy(plain)
    update_bn([x], expected)
    match_norms(plain, dynamic, [x])
    for index in (1, 4):
        for name in ('running_mean', 'running_var'):
            actual = getattr(plain[index], name)
            torch.testing.assert_close(actual, getattr(expected[index], name), rtol=5e-3, atol=1e-6)


def test_a_constant_channel_only_moves():
    dynamic, plain = (
        nn.Sequential(conv(3, 2, 1), nn.BatchNorm2d(2)).double() for conv in (KWConv2d, nn.Conv2d)
    )
    mmkw.set_temperature(dynamic, 1)
    load_static(plain, dynamic, mean_kernels(dynamic, [images(2)]))
    with torch.no_grad():
        plain[0].weight[0], plain[0].bias[0] = 0, 3
    match_norms(plain, dynamic, [images(2)])
    assert plain[1].running_var[0] == 1
    y = plain(images(2))[:, 0]
    torch.testing.assert_close(y, dynamic(images(2))[:, 0].mean().expand_as(y))


def test_configs():
    hooks = [dict(type='KWTemperatureHook', epochs=1), dict(type='FiniteLossHook')]
    start = dict(type='Pretrained', checkpoint='no.pth')
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='KWVisionTransformer', budget=4, img_size=32, init_cfg=start),
        head=[dict(type='KWLinearClsHead', num_classes=10, in_channels=4, budget='1/2')],
    )
    config = config_of(model, custom_hooks=hooks, load_from='no.pth')
    plain = plain_config(config)
    assert plain.model.to_dict() == dict(
        type='ImageClassifier',
        # The default of KWVisionTransformer, not that of VisionTransformer.
        backbone=dict(type='mmpretrain.VisionTransformer', img_size=32, arch='deit-tiny'),
        head=[dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=4)],
    )
    assert plain.custom_hooks == hooks[1:] and plain.load_from is None
    assert config.model.backbone.budget == 4 and config.load_from == 'no.pth'


def test_calibration_data():
    def reader(root, pipeline):
        return dict(type='ImageNet', data_root=root, pipeline=[dict(type=pipeline)])

    both = dict(type='ConcatDataset', datasets=[reader('a', 'Crop'), reader('b', 'Crop')])
    train = dict(batch_size=4, dataset=dict(type='RepeatDataset', times=3, dataset=both))
    test = dict(batch_size=2, dataset=reader('c', 'Resize'))
    config = Config(dict(train_dataloader=train, test_dataloader=test))
    loader = calibration_loader(config)
    assert loader.batch_size == 4 and loader.sampler.shuffle
    expected = [reader('a', 'Resize'), reader('b', 'Resize')]
    assert loader.dataset == dict(type='ConcatDataset', datasets=expected)
    assert calibration_loader(config, 'test').dataset == test['dataset']
    assert config.train_dataloader.to_dict() == train
    with pytest.raises(ValueError, match='no val_dataloader.*choose another split'):
        calibration_loader(config, 'val')


def test_refused_networks():
    with pytest.raises(ValueError, match='Conv2d has no dynamic layers'):
        mean_kernels(nn.Conv2d(3, 4, 3), [])
    with pytest.raises(ValueError, match="layer '0' is a DCDConv2d"):
        mean_kernels(nn.Sequential(DCDConv2d(3, 4, 3, padding=1)), [])
    dynamic = nn.Sequential(KWConv2d(3, 4, 3)).double()
    with pytest.raises(ValueError, match="layer '0' saw no calibration image"):
        mean_kernels(dynamic, [])
    kernels = mean_kernels(dynamic, [images(1)])
    with pytest.raises(ValueError, match='not the dynamic one with plain layers'):
        load_static(nn.Sequential(nn.Conv2d(3, 8, 3)), dynamic, kernels)


def predictions(*args):
    load_tool('test').main([*args, '--work-dir=work', '--out=out.pkl'])
    with open('out.pkl', 'rb') as file:
        return pickle.load(file)


@pytest.fixture
def to_static(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_tiny(tmp_path))

    def to_static(config, *args):
        load_tool('deployment/to_static').main([config, 'model.pth', *args, '--work-dir=work'])
        return capsys.readouterr().out

    return to_static


def test_tool(to_static, tmp_path):
    names = dict(classes=('dark', 'bright'))
    write_random_model('tiny.py', 'model.pth', temperature=0, dataset_meta=names)
    shown = to_static('tiny.py', 'matched.pth', '--num-images=9')
    assert 'averaging the kernels over 2 batches' in shown
    assert '20 batch norms have new statistics' in shown
    scores = r'accuracy/top1\n  dynamic +\S+\n  static +\S+\n  static, norms matched +\S+\n$'
    assert re.search(scores, shown)

    for name in ('static.pth', 'static.py'):
        (tmp_path / name).write_text('of an earlier run')
    assert 'accuracy' not in to_static('tiny.py', 'static.pth', '--keep-norms', '--no-test')
    matched, static = (
        torch.load(f'{name}.pth', weights_only=True) for name in ('matched', 'static')
    )
    assert static['meta']['dataset_meta']['classes'] == ('dark', 'bright')
    matched, static = matched['state_dict'], static['state_dict']
    assert static.keys() == matched.keys()
    name = 'backbone.layer4.1.bn2.running_var'
    assert not matched[name].equal(static[name])

    # All else as at temperature 1, where nothing may change.
    model = torch.load('model.pth', weights_only=True)
    for name, value in model['state_dict'].items():
        if name.endswith('temperature'):
            value.fill_(1)
    torch.save(model, 'model.pth')
    to_static('tiny.py', 'exact.pth', '--no-test')
    before, after = predictions('tiny.py', 'model.pth'), predictions('exact.py', 'exact.pth')
    assert len(before) == 16
    for one, other in zip(before, after):
        torch.testing.assert_close(other['pred_score'], one['pred_score'])


def test_refused_by_the_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(CLASSIFIER)
    write_random_model('config.py', 'model.pth', temperature=1)
    tool = load_tool('deployment/to_static')
    line = refused(tool, 'config.py', 'model.pth', 'config.pth')
    assert 'cannot write config.py: the tool reads this file; name another one' in line
    line = refused(tool, 'config.py', 'model.pth', 'no/static.pth')
    assert 'folder no does not exist' in line
    line = refused(tool, 'config.py', 'model.pth', 'static.pth', '--launcher=pytorch')
    assert 'without --launcher' in line
    line = refused(tool, 'config.py', 'model.pth', 'static.pth')
    assert 'does not exist' in line and 'train_dataloader.dataset.data_root' in line
    for args in (['static.py'], ['static.pth', '--num-images=0']):
        with pytest.raises(SystemExit):
            tool.main(['config.py', 'model.pth', *args])
    shown = capsys.readouterr().err
    assert 'must end in .pth or .safetensors' in shown and 'must be at least 1, not 0' in shown
    assert not list(tmp_path.glob('static*'))


@pytest.mark.slow
def test_tool_with_a_detector(to_static, tmp_path):
    write_random_model('detector.py', 'model.pth', temperature=1)
    shown = to_static('detector.py', 'static.safetensors', '--split=test')
    table = r'coco/bbox_mAP_50\n  dynamic +(\S+)\n  static +\S+\n  static, norms matched +(\S+)'
    assert len(set(re.search(table, shown).groups())) == 1
    before = predictions('detector.py', 'model.pth')
    after = predictions('static.py', 'static.safetensors')
    for one, other in zip(before, after):
        boxes = (found['pred_instances']['bboxes'] for found in (other, one))
        torch.testing.assert_close(*boxes, rtol=1e-3, atol=1e-2)
