"""Released checkpoints, converted by the tool, against the released models' outputs."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from golden import load_golden, make_input, make_released_checkpoint
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmkw

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'kernelwarehouse_to_mmkw.py'
CONFIGS = ROOT / 'configs'
GOLDEN = {
    'kw_resnet18_1x': 'kw-resnet18-1x_8xb512-300e_in1k.py',
    'kw_resnet18_1d2x': 'kw-resnet18-1d2x_8xb512-300e_in1k.py',
    'kw_resnet50_1x': 'kw-resnet50-1x_8xb512-300e_in1k.py',
    'kw_resnet50_1d2x': 'kw-resnet50-1d2x_8xb512-300e_in1k.py',
    'kw_mobilenetv2_050_1x': 'kw-mobilenet-v2-w050-1x_8xb32-150e_in1k.py',
    'kw_mobilenetv2_050_1d2x': 'kw-mobilenet-v2-w050-1d2x_8xb32-150e_in1k.py',
    'kw_mobilenetv2_050_4x': 'kw-mobilenet-v2-w050-4x_8xb32-150e_in1k.py',
    'kw_convnext_tiny_1x': 'kw-convnext-tiny-1x-released_8xb512-300e_in1k.py',
}
CELLS, CELLS_RELEASED = 'backbone.warehouses.stem.cells', 'warehouse_manager.weights.0'
# The module whose output is a stage's; the ResNets and ConvNeXt call them as MMPretrain does.
STAGES = {
    'features.1': 'layer1',
    'features.3': 'layer2',
    'features.6': 'layer3',
    'features.13': 'layer5',
    'features.18': 'conv2',
}
# In training mode at temperature 0, batch norms over four samples, one after the other, amplify
# rounding in float64: moving input or weights in their last digits moves the outputs of these
# networks by up to 3e-6, those of MobileNetV2 4x by up to 2e-5. The golden values, in float64
# too, are no better than that.
ROUNDING = {
    'kw_resnet50_1x': 1e-5,
    'kw_resnet50_1d2x': 1e-5,
    'kw_mobilenetv2_050_1x': 1e-5,
    'kw_mobilenetv2_050_4x': 1e-4,
}


def convert(name, folder):
    """Run a released file through the command-line tool."""
    golden = load_golden(name)
    checkpoint = make_released_checkpoint(golden)
    if 'convnext' in name:
        # Released with the averaged weights, which are to be taken, beside the last ones.
        checkpoint['model_ema'] = checkpoint['model']
        checkpoint['model'] = {
            name: torch.zeros((), dtype=value.dtype).expand(value.shape)
            for name, value in checkpoint['model'].items()
        }
    torch.save(checkpoint, folder / f'{name}-released.pth')
    command = [sys.executable, TOOL, folder / f'{name}-released.pth', folder / f'{name}.pth']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return golden, folder / f'{name}.pth'


@pytest.fixture(scope='module')
def conversions(tmp_path_factory):
    """Of all released files, in processes that go on while the first results are tested."""
    pool = ThreadPoolExecutor(max_workers=2)
    folder = tmp_path_factory.mktemp('converted')
    yield {name: pool.submit(convert, name, folder) for name in GOLDEN}
    pool.shutdown(cancel_futures=True)


def build_classifier(config_name):
    config = Config.fromfile(CONFIGS / 'imagenet' / config_name)
    init_default_scope(config.default_scope)
    if 'drop_path_rate' in config.model.backbone:
        config.model.backbone.drop_path_rate = 0.0
    return MODELS.build(config.model)


def relative_error(actual, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    # ReLU zeroes some outputs altogether; they have to be zero here, too.
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_matches(classifier, x, expected, tolerance):
    stages = {}

    def keep(name):
        return lambda module, args, output: stages.update({name: output})

    hooks = [
        classifier.backbone.get_submodule(STAGES.get(name, name)).register_forward_hook(keep(name))
        for name in expected['stages']
    ]
    with torch.no_grad():
        logits = classifier(x)
    for hook in hooks:
        hook.remove()
    for name, golden in expected['stages'].items():
        assert list(stages[name].shape) == golden['shape']
        stage = stages[name].flatten(1)
        assert relative_error(stage.norm(dim=1), golden['norm']) < tolerance
        assert relative_error(stage[:, :4], golden['first4']) < tolerance
    assert relative_error(logits[:, :8], expected['logits_first8']) < tolerance
    assert relative_error(logits.norm(dim=1), expected['logits_norm']) < tolerance


@pytest.mark.parametrize('name', GOLDEN)
def test_converted_checkpoint_matches_released_model(name, conversions):
    golden, path = conversions[name].result()
    classifier = build_classifier(GOLDEN[name])
    assert sum(p.numel() for p in classifier.parameters()) == golden['num_parameters']
    checkpoint = mmkw.checkpoints.load_checkpoint(path)
    classifier.load_state_dict(checkpoint['state_dict'], strict=True)
    assert mmkw.get_temperature(classifier) == 0

    x = make_input(golden)
    for mode, tolerance, dtype in [
        ('eval', 1e-4, torch.float32),
        ('eval', 1e-6, torch.float64),
        ('train', 1e-6, torch.float64),
    ]:
        classifier.to(dtype).train(mode == 'train')
        for temperature in (0.0, 0.5, 1.0):
            mmkw.set_temperature(classifier, temperature)
            expected = golden['outputs'][mode][str(temperature)]
            if (mode, temperature) == ('train', 0.0):
                assert_matches(classifier, x.to(dtype), expected, ROUNDING.get(name, tolerance))
            else:
                assert_matches(classifier, x.to(dtype), expected, tolerance)


def as_released(golden_name, backbone, head):
    """A network's state dict under the names of a golden file.

    Both list their tensors in the order of the modules, whatever they call them.
    """
    network = nn.ModuleDict(dict(backbone=MODELS.build(backbone), head=MODELS.build(head)))
    state_dict = {
        name: torch.rand(value.shape).to(value.dtype)
        for name, value in network.state_dict().items()
        if not name.endswith('.temperature')
    }
    plain = [name for name in state_dict if not name.endswith('.cells')]
    names = [name for name, _ in load_golden(golden_name)['state_dict']]
    released_names = [name for name in names if not name.startswith('warehouse_manager.')]
    assert len(released_names) == len(plain)
    released = {}
    for released_name, name in zip(released_names, plain):
        value = state_dict[name]
        released[released_name] = value.view(1, -1, 1, 1) if name.endswith('gamma') else value
    for number, name in enumerate(name for name in state_dict if name.endswith('.cells')):
        value = state_dict[name]
        if name.startswith('backbone.'):
            value = value.view(*value.shape[:3], 1, 1)
        released[f'warehouse_manager.weights.{number}'] = value
    return released, state_dict


def plain_head(in_channels):
    return dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=in_channels)


KW_HEAD = dict(
    type='KWLinearClsHead',
    num_classes=1000,
    in_channels=1280,
    budget=1 / 2,
    cell_ratio=(1, 1 / 40),
    reduction=1 / 32,
)
OTHERS = {
    'resnet18_1d4x': ('kw_resnet18_1x', dict(type='KWResNet', depth=18, budget=1 / 4)),
    'resnet18_4x': ('kw_resnet18_1x', dict(type='KWResNet', depth=18, budget=4)),
    'mobilenetv2_100_1x': (
        'kw_mobilenetv2_050_1x',
        dict(type='KWMobileNetV2', widen_factor=1.0, budget=1),
    ),
    'mobilenetv2_100_4x': (
        'kw_mobilenetv2_050_4x',
        dict(type='KWMobileNetV2', widen_factor=1.0, budget=4),
    ),
    'mobilenetv2_100_1d2x': (
        'kw_mobilenetv2_050_1d2x',
        dict(type='KWMobileNetV2', widen_factor=1.0, budget=1 / 2),
    ),
    'convnext_tiny_1x of the paper': ('kw_convnext_tiny_1x', dict(type='KWConvNeXt', budget=1)),
    'convnext_tiny_3d4x': ('kw_convnext_tiny_1x', dict(type='KWConvNeXt', budget=3 / 4)),
}
IN_CHANNELS = dict(KWResNet=512, KWMobileNetV2=1280, KWConvNeXt=768)


@pytest.mark.parametrize(('golden_name', 'backbone'), OTHERS.values(), ids=OTHERS)
def test_other_networks_of_the_paper_are_told_apart(golden_name, backbone, tmp_path):
    has_kw_head = golden_name == 'kw_mobilenetv2_050_1d2x'
    head = KW_HEAD if has_kw_head else plain_head(IN_CHANNELS[backbone['type']])
    released, expected = as_released(golden_name, backbone, head)
    torch.save(dict(model=released), tmp_path / 'released.pth')
    checkpoint = mmkw.checkpoints.convert_released(tmp_path / 'released.pth')
    assert backbone.items() <= checkpoint['meta']['backbone'].items()
    assert checkpoint['meta']['head'] == head
    converted = checkpoint['state_dict']
    assert {name for name in converted if not name.endswith('.temperature')} == set(expected)
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name


@pytest.fixture(scope='module')
def released_file(tmp_path_factory):
    """Path of the released file of a golden file's name."""
    folder = tmp_path_factory.mktemp('released')

    def path(name='kw_resnet18_1x'):
        if not (folder / name).exists():
            torch.save(make_released_checkpoint(load_golden(name)), folder / name)
        return folder / name

    return path


def test_averaged_weights_are_taken_where_there_are_any(released_file, tmp_path):
    checkpoint = mmkw.checkpoints.load_checkpoint(released_file('kw_mobilenetv2_050_1x'))
    last = checkpoint['model']
    averaged = {name: value + 1 for name, value in last.items()}
    torch.save(dict(model=last, model_ema=averaged), tmp_path / 'both.pth')
    torch.save(last, tmp_path / 'bare.pth')
    for name, weights, taken, expected in [
        ('both.pth', 'auto', 'model_ema', averaged),
        ('both.pth', 'model_ema', 'model_ema', averaged),
        ('bare.pth', 'auto', None, last),
    ]:
        converted = mmkw.checkpoints.convert_released(tmp_path / name, weights=weights)
        assert (converted['meta']['source'], converted['meta']['weights']) == (name, taken)
        for new, old in [('head.fc.bias', 'classifier.bias'), (CELLS, CELLS_RELEASED)]:
            assert torch.equal(converted['state_dict'][new], expected[old])

    command = [sys.executable, TOOL, tmp_path / 'both.pth', tmp_path / 'mmkw.pth']
    result = subprocess.run(
        [*command, '--weights', 'model'], check=True, capture_output=True, text=True
    )
    assert 'KWMobileNetV2(widen_factor=0.5, budget=1)' in result.stdout
    assert 'tensors from model ->' in result.stdout
    converted = mmkw.checkpoints.load_checkpoint(tmp_path / 'mmkw.pth')
    assert converted['meta']['weights'] == 'model'
    assert torch.equal(converted['state_dict'][CELLS], last[CELLS_RELEASED])


def test_weights_that_are_not_there_are_refused(released_file, tmp_path):
    with pytest.raises(ValueError, match=r"has no 'model_ema', only \['model', 'optimizer'"):
        mmkw.checkpoints.convert_released(released_file(), tmp_path / 'a.pth', 'model_ema')
    with pytest.raises(ValueError, match=r"one of \('auto', 'model_ema', 'model'\).* 'ema'"):
        mmkw.checkpoints.convert_released(released_file(), tmp_path / 'a.pth', 'ema')
    assert not (tmp_path / 'a.pth').exists()


def test_initialises_the_backbone_of_a_detector(released_file, tmp_path):
    checkpoint = mmkw.checkpoints.convert_released(released_file(), tmp_path / 'mmkw.pth')
    init_default_scope('mmdet')
    backbone = MODELS.build(
        dict(
            type='KWResNet',
            depth=18,
            out_indices=(0, 1, 2, 3),
            frozen_stages=1,
            norm_eval=True,
            init_cfg=dict(
                type='Pretrained', checkpoint=str(tmp_path / 'mmkw.pth'), prefix='backbone.'
            ),
        )
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict'][f'backbone.{name}']), name


@pytest.mark.parametrize(
    'other', [dict(depth=34), dict(depth=18, budget=2), dict(depth=18, budget=0.5)]
)
def test_checkpoint_of_another_depth_or_budget_is_refused(released_file, tmp_path, other):
    mmkw.checkpoints.convert_released(released_file(), tmp_path / 'mmkw.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'mmkw.pth'), prefix='backbone.')
    backbone = MODELS.build(dict(type='KWResNet', init_cfg=init_cfg, **other))
    with pytest.raises(ValueError, match=r'cells of the checkpoint has shape .*depth, budget'):
        backbone.init_weights()


def test_plain_checkpoint_is_refused(tmp_path):
    plain = MODELS.build(dict(type='KWResNet', depth=18, budget=None))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    backbone = MODELS.build(dict(type='KWResNet', depth=18, init_cfg=init_cfg))
    with pytest.raises(ValueError, match=r'layer1.0.conv1.weight.*KernelWarehouse'):
        backbone.init_weights()


def drop(start):
    """An edit that removes the tensors whose names start so."""

    def edit(state_dict):
        for name in [name for name in state_dict if name.startswith(start)]:
            del state_dict[name]

    return edit


def put(**shapes):
    """An edit that sets tensors, named with ``__`` for a dot."""
    return lambda state_dict: state_dict.update(
        {name.replace('__', '.'): torch.zeros(shape) for name, shape in shapes.items()}
    )


def swap_warehouses(state_dict):
    first, second = 'warehouse_manager.weights.2', 'warehouse_manager.weights.3'
    state_dict[first], state_dict[second] = state_dict[second], state_dict[first]


RESNET, MOBILENET, CONVNEXT = 'kw_resnet18_1x', 'kw_mobilenetv2_050_1x', 'kw_convnext_tiny_1x'
DAMAGES = {
    'a block less': (RESNET, drop('layer3.1.'), r'no ResNet .* has \(2, 2, 1, 2\) basic blocks'),
    'another width': (MOBILENET, put(features__0__1__weight=24), r'32 or 16 channels.* has 24'),
    'another ConvNeXt': (CONVNEXT, drop('stages.2.8.'), r'no ConvNeXt of .*\[3, 3, 8, 3\] blocks'),
    'half a warehouse': (
        RESNET,
        put(warehouse_manager__weights__3=(13, 512, 512, 1, 1)),
        r"nearest is .*'budget': 1}, but \S+\.weights\.3 is \(13, .* instead of \(27, ",
    ),
    'a warehouse less': (
        MOBILENET,
        drop('warehouse_manager.weights.12'),
        r"nearest is .*'budget': 1}, but \S+\.weights\.12 is missing instead of \(27, 480, ",
    ),
    'a hole between warehouses': (
        MOBILENET,
        drop('warehouse_manager.weights.7'),
        r'numbered from 0, but found \[.* 6, 8, ',
    ),
    'a warehouse more': (
        RESNET,
        put(warehouse_manager__weights__4=(1, 2, 3)),
        r'weights\.4 is \(1, 2, 3\) instead of missing',
    ),
    'swapped warehouses': (
        MOBILENET,
        swap_warehouses,
        r'weights\.2 is \(24, 16, 16, 1, 1\) instead of \(20, 8, 8, .*weights\.3 is \(20, 8, 8',
    ),
    'two networks': (
        RESNET,
        put(features__0__0__bias=3),
        r'found those of KWResNet and KWMobileNetV2',
    ),
    'no network': (RESNET, drop('layer'), r'found those of none'),
    'two classifiers': (
        MOBILENET,
        put(classifier__1__conv__bias=1000),
        r'classifier\.1\.conv\.bias of a KWMobileNetV2 is there twice',
    ),
    'no classifier': (RESNET, drop('fc.'), r'lacks head\.fc\.bias'),
    'unknown name': (MOBILENET, put(features__19__0=3), r'features\.19\.0 of .* is unknown'),
    'unexpected tensor': (
        RESNET,
        put(layer1__0__surprise=3),
        r"looks like .*KWResNet.*'depth': 18.*layer1\.0\.surprise",
    ),
    'missing tensor': (
        MOBILENET,
        drop('features.1.conv.0.0.attention.fc2.bias'),
        r'looks like .*layer1\.0\.conv\.0\.conv\.attention\.fc2\.bias',
    ),
    'wrong shape': (
        CONVNEXT,
        put(stages__0__0__gamma=(1, 95, 1, 1)),
        r'looks like .*stages\.0\.0\.gamma.*95',
    ),
    'plain kernel': (
        RESNET,
        put(layer1__0__conv1__weight=(64, 64, 3, 3)),
        r'looks like .*plain kernel, backbone\.layer1\.0\.conv1\.weight',
    ),
    'no tensor': (
        RESNET,
        lambda state_dict: state_dict.update({'bn1.bias': 'zeros'}),
        r"tensors by name, but 'bn1\.bias' is of type str",
    ),
}


@pytest.mark.parametrize(('name', 'edit', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(released_file, tmp_path, name, edit, message):
    checkpoint = mmkw.checkpoints.load_checkpoint(released_file(name))
    edit(checkpoint['model'])
    torch.save(dict(model=checkpoint['model']), tmp_path / 'edited.pth')
    with pytest.raises(ValueError, match=message) as error:
        mmkw.checkpoints.convert_released(tmp_path / 'edited.pth', tmp_path / 'mmkw.pth')
    assert str(tmp_path / 'edited.pth') in str(error.value)
    assert not (tmp_path / 'mmkw.pth').exists()


def test_tool_says_in_one_line_what_is_wrong(tmp_path):
    other = tmp_path / 'other.pth'
    torch.save(dict(weight=torch.zeros(3)), other)
    payload = tmp_path / 'payload.pth'

    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)

    torch.save(dict(model={}, args=Payload()), payload)
    paths = (other, payload, tmp_path / 'missing.pth')
    runs = [
        subprocess.Popen(
            [sys.executable, TOOL, path, tmp_path / 'mmkw.pth'], stderr=subprocess.PIPE, text=True
        )
        for path in paths
    ]
    for path, run in zip(paths, runs):
        _, stderr = run.communicate()
        assert run.returncode == 1
        assert stderr.startswith('error: ') and str(path) in stderr
        assert len(stderr.splitlines()) == 1
    assert not (tmp_path / 'mmkw.pth').exists()
    assert not (tmp_path / 'ran').exists()
