"""Released checkpoints, converted by the tool, against the released models' outputs."""

import copy
import hashlib
import inspect

import pytest
import torch
from config_models import CONFIGS, load
from edits import drop, put
from golden import (
    assert_stages_match,
    load_golden,
    make_input,
    make_released_checkpoint,
    relative_error,
    released_names,
    released_shape,
    stage_outputs,
)
from hostile_pickles import creates
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import load_tool, refused
from torch import nn

import mmkw

TOOL = load_tool('model_converters/released_to_mmkw')
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
# Whether one temperature is tested by default; the others have siblings of their family and budget.
TAKES_LONG = {
    'kw_resnet50_1x': False,
    'kw_resnet50_1d2x': True,
    'kw_resnet18_1d2x': False,
    'kw_convnext_tiny_1x': True,
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
    torch.save(checkpoint, folder / 'released.pth')
    TOOL.main([str(folder / 'released.pth'), str(folder / 'mmkw.pth')])
    return golden, folder / 'mmkw.pth'


def build_classifier(config_name):
    config = copy.deepcopy(load(CONFIGS / 'imagenet' / config_name))
    init_default_scope(config.default_scope)
    if 'drop_path_rate' in config.model.backbone:
        config.model.backbone.drop_path_rate = 0.0
    return MODELS.build(config.model)


def assert_matches(classifier, x, expected, tolerance):
    with torch.no_grad(), stage_outputs(classifier.backbone, expected) as stages:
        logits = classifier(x)
    assert_stages_match(stages, expected, tolerance)
    assert relative_error(logits[:, :8], expected['logits_first8']) < tolerance
    assert relative_error(logits.norm(dim=1), expected['logits_norm']) < tolerance


@pytest.mark.parametrize(
    ('name', 'temperatures'),
    [
        *((name, (0.0, 0.5, 1.0)) for name in GOLDEN if name not in TAKES_LONG),
        # At 0.5, attentions are the mean of those at 0 and 1.
        *((name, (0.5,)) for name, by_default in TAKES_LONG.items() if by_default),
        *(pytest.param(name, (0.0, 0.5, 1.0), marks=pytest.mark.slow) for name in TAKES_LONG),
    ],
)
def test_converted_checkpoint_matches_released_model(name, temperatures, tmp_path):
    golden, path = convert(name, tmp_path)
    classifier = build_classifier(GOLDEN[name])
    assert sum(p.numel() for p in classifier.parameters()) == golden['num_parameters']
    checkpoint = mmkw.checkpoints.load_checkpoint(path)
    classifier.load_state_dict(checkpoint['state_dict'], strict=True)
    assert checkpoint['meta']['config'] == f'configs/imagenet/{GOLDEN[name]}'
    assert mmkw.get_temperature(classifier) == 0

    x = make_input(golden)
    for mode, tolerance, dtype in [
        ('eval', 1e-4, torch.float32),
        ('eval', 1e-6, torch.float64),
        ('train', 1e-6, torch.float64),
    ]:
        classifier.to(dtype).train(mode == 'train')
        for temperature in temperatures if dtype == torch.float64 else temperatures[:1]:
            mmkw.set_temperature(classifier, temperature)
            expected = golden['outputs'][mode][str(temperature)]
            if (mode, temperature) == ('train', 0.0):
                assert_matches(classifier, x.to(dtype), expected, ROUNDING.get(name, tolerance))
            else:
                assert_matches(classifier, x.to(dtype), expected, tolerance)


def as_released(golden_name, backbone, head):
    """A network's state dict under the names of a golden file, and under its own."""
    network = nn.ModuleDict(dict(backbone=MODELS.build(backbone), head=MODELS.build(head)))
    state_dict = {
        name: torch.rand(value.shape).to(value.dtype)
        for name, value in network.state_dict().items()
        if not name.endswith('.temperature')
    }
    weights = {
        released_name: state_dict[name].view(released_shape(name, state_dict[name].shape))
        for name, released_name in released_names(golden_name, state_dict).items()
    }
    return weights, state_dict


def plain_head(in_channels):
    return dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=in_channels)


KW_HEAD = dict(
    type='KWLinearClsHead',
    num_classes=1000,
    in_channels=1280,
    budget=1 / 2,
    cell_ratio=(1, 1 / 40),
    attention=dict(reduction=1 / 32),
)
OTHERS = {
    'resnet18_1d4x': ('kw_resnet18_1x', dict(type='KWResNet', depth=18, budget=1 / 4)),
    'resnet18_2x': ('kw_resnet18_1x', dict(type='KWResNet', depth=18, budget=2)),
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
SLOW_OTHERS = ('resnet18_2x', 'resnet18_4x', 'convnext_tiny_3d4x')
IN_CHANNELS = dict(KWResNet=512, KWMobileNetV2=1280, KWConvNeXt=768)


def assert_config_has(path, backbone):
    actual = load(CONFIGS.parent / path).model.backbone
    defaults = inspect.signature(MODELS.get(actual.type)).parameters
    for key, value in backbone.items():
        default = defaults[key].default if key in defaults else None
        assert actual.get(key, default) == value, key


@pytest.mark.parametrize(
    ('golden_name', 'backbone'),
    [
        # By default, another budget of each of these networks is told apart.
        pytest.param(*other, marks=pytest.mark.slow if name in SLOW_OTHERS else ())
        for name, other in OTHERS.items()
    ],
    ids=OTHERS,
)
def test_other_networks_of_the_paper_are_told_apart(golden_name, backbone, tmp_path):
    has_kw_head = golden_name == 'kw_mobilenetv2_050_1d2x'
    head = KW_HEAD if has_kw_head else plain_head(IN_CHANNELS[backbone['type']])
    weights, expected = as_released(golden_name, backbone, head)
    torch.save(dict(model=weights), tmp_path / 'released.pth')
    checkpoint = mmkw.checkpoints.convert_released(tmp_path / 'released.pth')
    assert backbone.items() <= checkpoint['meta']['backbone'].items()
    assert_config_has(checkpoint['meta']['config'], checkpoint['meta']['backbone'])
    assert checkpoint['meta']['head'] == head
    converted = checkpoint['state_dict']
    assert {name for name in converted if not name.endswith('.temperature')} == set(expected)
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name


def test_averaged_weights_are_taken_where_there_are_any(released_file, tmp_path, capsys):
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

    TOOL.main([str(tmp_path / 'both.pth'), str(tmp_path / 'mmkw.pth'), '--weights', 'model'])
    out = capsys.readouterr().out
    assert 'KWMobileNetV2(widen_factor=0.5, budget=1)' in out
    assert 'tensors from model ->' in out
    converted = mmkw.checkpoints.load_checkpoint(tmp_path / 'mmkw.pth')
    assert converted['meta']['weights'] == 'model'
    assert torch.equal(converted['state_dict'][CELLS], last[CELLS_RELEASED])


def test_weights_that_are_not_there_are_refused(released_file, tmp_path):
    with pytest.raises(ValueError, match=r"has no 'model_ema', only \['model', 'optimizer'"):
        mmkw.checkpoints.convert_released(released_file(), tmp_path / 'a.pth', 'model_ema')
    with pytest.raises(
        ValueError, match=r"one of \('auto', 'model_ema', 'model', 'state_dict'\).* 'ema'"
    ):
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


def set_value(name, value):
    """An edit that spoils one number of a tensor."""

    def edit(state_dict):
        state_dict[name] = state_dict[name].clone().to(torch.float64)
        state_dict[name].view(-1)[-1] = value

    return edit


def retype(name, dtype):
    return lambda state_dict: state_dict.update({name: state_dict[name].to(dtype)})


def swap_warehouses(state_dict):
    first, second = 'warehouse_manager.weights.2', 'warehouse_manager.weights.3'
    state_dict[first], state_dict[second] = state_dict[second], state_dict[first]


RESNET, MOBILENET, CONVNEXT = 'kw_resnet18_1x', 'kw_mobilenetv2_050_1x', 'kw_convnext_tiny_1x'
DAMAGES = {
    'a block less': (RESNET, drop('layer3.1.'), r'no ResNet .* has \(2, 2, 1, 2\) basic blocks'),
    'another width': (
        MOBILENET,
        put(features__0__1__weight=20),
        r'32 or 24 or 16 channels.* has 20',
    ),
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
        r'found those of ResNet and MobileNetV2',
    ),
    'no network': (RESNET, drop('layer'), r'found those of none'),
    'two classifiers': (
        MOBILENET,
        put(classifier__1__conv__bias=1000),
        r'classifier\.1\.conv\.bias of a MobileNetV2 is there twice',
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
        r'looks like .*the model has no backbone\.layer1\.0\.conv1\.weight',
    ),
    'one tensor with and without the prefix of distributed training': (
        RESNET,
        put(module__bn1__bias=64),
        r'module\.bn1\.bias is there twice, with and without',
    ),
    'one warehouse with and without it': (
        RESNET,
        put(module__warehouse_manager__weights__3=(27, 512, 512, 1, 1)),
        r'module\.warehouse_manager\.weights\.3 is there twice, with and without',
    ),
    'not a number': (
        RESNET,
        set_value('warehouse_manager.weights.2', float('nan')),
        r'warehouse_manager\.weights\.2 has values that are infinite, not a number',
    ),
    'infinite': (MOBILENET, set_value('classifier.bias', float('inf')), r'classifier\.bias has v'),
    'too large': (RESNET, set_value('fc.bias', 1e300), r'fc\.bias has .* too large for float32'),
    'integers': (
        RESNET,
        retype('warehouse_manager.weights.0', torch.int32),
        r'warehouse_manager\.weights\.0 is of type torch\.int32; expected one of torch\.float16',
    ),
    'truth values': (RESNET, retype('bn1.weight', torch.bool), r'bn1\.weight .* torch\.bool'),
    'complex': (RESNET, retype('fc.weight', torch.complex64), r'fc\.weight .* torch\.complex64'),
    'counter of another type': (
        RESNET,
        retype('bn1.num_batches_tracked', torch.float32),
        r'bn1\.num_batches_tracked is of type torch\.float32; expected one of torch\.uint8',
    ),
    'no values': (
        RESNET,
        lambda state_dict: state_dict.update(
            {'fc.weight': torch.zeros(1000, 512, dtype=torch.float32).to_sparse()}
        ),
        r'fc\.weight is no ordinary tensor, but torch\.sparse_coo',
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


@pytest.fixture
def half_file(released_file, tmp_path):
    """A released file in half precision, but for one tensor that is in double."""
    weights = mmkw.checkpoints.load_checkpoint(released_file(MOBILENET))['model']
    for name, value in weights.items():
        if value.is_floating_point():
            weights[name] = value.double() if name == 'classifier.bias' else value.half()
    torch.save(dict(model=weights), tmp_path / 'half.pth')
    return tmp_path / 'half.pth'


def test_half_precision_is_cast(half_file):
    half = mmkw.checkpoints.load_checkpoint(half_file)['model']
    converted = mmkw.checkpoints.convert_released(half_file)
    assert converted['meta']['dtypes'] == ['torch.float16', 'torch.float64']
    assert {value.dtype for value in converted['state_dict'].values()} == {
        torch.float32,
        torch.int64,
    }
    for new, old in [('head.fc.bias', 'classifier.bias'), (CELLS, CELLS_RELEASED)]:
        assert torch.equal(converted['state_dict'][new], half[old].float())


def test_views_of_larger_tensors_are_written_without_the_rest(released_file, tmp_path):
    weights = mmkw.checkpoints.load_checkpoint(released_file(MOBILENET))['model']
    sizes = []
    for name in ('as_released.pth', 'views.pth'):
        torch.save(dict(model=weights), tmp_path / name)
        converted = mmkw.checkpoints.convert_released(tmp_path / name, tmp_path / 'mmkw.pth')
        sizes.append((tmp_path / 'mmkw.pth').stat().st_size)
        larger = torch.cat([weights['classifier.weight']] * 3)
        weights['classifier.weight'] = larger[:1000]
    assert converted['state_dict']['head.fc.weight'].equal(weights['classifier.weight'])
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_dry_run_shows_every_tensor_and_writes_nothing(half_file, tmp_path, capsys):
    TOOL.main(['--dry-run', str(half_file), str(tmp_path / 'mmkw.pth')])
    out = capsys.readouterr().out.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == [half_file.name]
    shown = dict(line.split(' -> ') for line in out if ' -> ' in line)
    state_dict = mmkw.checkpoints.convert_released(half_file)['state_dict']
    weights = mmkw.checkpoints.load_checkpoint(half_file)['model']
    *mapping, last = shown
    assert mapping == list(weights)
    assert shown[CELLS_RELEASED] == f'{CELLS} (9, 16, 3, 1, 1)'
    targets = set()
    for name in mapping:
        target, shape = shown[name].split(' ', 1)
        targets.add(target)
        assert shape == str(tuple(state_dict[target].shape))
        assert torch.equal(state_dict[target].flatten(), weights[name].flatten().float())
    assert targets == {name for name in state_dict if not name.endswith('.temperature')}
    assert f'config: configs/imagenet/{GOLDEN[MOBILENET]}' in out
    assert 'cast to torch.float32: torch.float16, torch.float64' in out
    assert 'ImageClassifier with KWMobileNetV2(widen_factor=0.5, budget=1)' in last
    assert shown[last] == 'nothing written (dry run)'


def test_says_where_the_weights_came_from(released_file):
    meta = mmkw.checkpoints.convert_released(released_file())['meta']
    assert (meta['source'], meta['weights']) == ('kw_resnet18_1x', 'model')
    assert meta['source_sha256'] == hashlib.sha256(released_file().read_bytes()).hexdigest()
    assert meta['model'] == 'ImageClassifier'


def test_tool_says_in_one_line_what_is_wrong(tmp_path):
    other = tmp_path / 'other.pth'
    torch.save(dict(weight=torch.zeros(3)), other)
    payload = tmp_path / 'payload.pth'

    torch.save(dict(model={}, args=creates(tmp_path / 'ran')), payload)
    for path in (other, payload, tmp_path / 'missing.pth'):
        assert str(path) in refused(TOOL, path, tmp_path / 'mmkw.pth')
    assert not (tmp_path / 'mmkw.pth').exists()
    assert not (tmp_path / 'ran').exists()
