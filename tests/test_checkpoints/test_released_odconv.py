"""Released ODConv checkpoints, converted by the tool, against the released models' outputs."""

import re

import pytest
import torch
from config_models import CONFIGS, build, load
from edits import drop, put
from golden import (
    assert_stages_match,
    load_golden,
    make_input,
    relative_error,
    stage_outputs,
)
from tiny_runs import load_tool

import mmkw
from mmkw.checkpoints import convert_released, load_checkpoint
from mmkw.checkpoints.released_conversion import read_released

GOLDEN = {
    'odconv4x_resnet18': 'odconv-resnet18-4x_8xb32-100e_in1k',
    'odconv4x_mobilenetv2_050': 'odconv-mobilenet-v2-w050-4x_8xb32-150e_in1k',
}
OTHERS = [
    'odconv-resnet34-1x_8xb32-100e_in1k',
    'odconv-resnet50-1x_8xb32-100e_in1k',
    'odconv-mobilenet-v2-w075-4x_8xb32-150e_in1k',
    'odconv-mobilenet-v2-w100-1x_8xb32-150e_in1k',
]


@pytest.mark.parametrize('name', GOLDEN)
def test_converted_checkpoint_matches_released_model(name, released_file, tmp_path, capsys):
    golden = load_golden(name)
    load_tool('model_converters/released_to_mmkw').main(
        [str(released_file(name)), str(tmp_path / 'mmkw.pth')]
    )
    out = capsys.readouterr().out
    assert f'config: configs/imagenet/{GOLDEN[name]}.py' in out
    assert 'layer=ODConv2d(num_kernels=4)' in out
    classifier = build(load(CONFIGS / 'imagenet' / f'{GOLDEN[name]}.py'))
    assert sum(p.numel() for p in classifier.parameters()) == golden['num_parameters']
    checkpoint = load_checkpoint(tmp_path / 'mmkw.pth')
    classifier.load_state_dict(checkpoint['state_dict'], strict=True)
    assert mmkw.get_temperature(classifier) == 1

    classifier.double()
    x = make_input(golden).double()
    cases = [(mode, value) for mode, outputs in golden['outputs'].items() for value in outputs]
    assert sorted(cases) == [(m, t) for m in ('eval', 'train') for t in ('1.0', '30.0')]
    for mode, temperature in cases:
        expected = golden['outputs'][mode][temperature]
        classifier.train(mode == 'train')
        mmkw.set_temperature(classifier, float(temperature))
        with torch.no_grad(), stage_outputs(classifier.backbone, expected) as stages:
            logits = classifier(x)
        assert_stages_match(stages, expected, 1e-6)
        assert relative_error(logits[:, :8], expected['logits_first8']) < 1e-6
        assert relative_error(logits.norm(dim=1), expected['logits_norm']) < 1e-6


def as_released(name, state_dict):
    """The state dict of a classifier, ``odconv-...``, as the release would have it."""
    weights = {}
    blocks = {}
    for target, value in state_dict.items():
        if target.endswith('.temperature'):
            continue
        new = target.removeprefix('backbone.').replace('.attention.norm.', '.attention.bn.')
        if 'mobilenet' in name:
            new = mobilenet_v2_name(new, blocks)
        else:
            new = new.replace('head.fc.', 'fc.')
        if '.attention.' in new and value.dim() == 2:
            value = value[:, :, None, None]
        weights[f'module.{new}'] = value.clone()
    return weights


def mobilenet_v2_name(name, blocks):
    """torchvision's name of a tensor; ``blocks`` counts those seen so far."""
    name = re.sub(r'^conv1\.conv\.', 'features.0.0.', name)
    name = re.sub(r'^conv1\.bn\.', 'features.0.1.', name)
    name = re.sub(r'^conv2\.conv\.', 'features.18.0.', name)
    name = re.sub(r'^conv2\.bn\.', 'features.18.1.', name)
    name = name.replace('head.fc.', 'classifier.1.')
    match = re.match(r'layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\.(.*)', name)
    if match:
        layer, block, index, kind, rest = match.groups()
        number = blocks.setdefault((layer, block), len(blocks) + 1)
        last = 1 if number == 1 else 2
        if int(index) < last:
            inner = f'{index}.{"0" if kind == "conv" else "1"}'
        else:
            inner = str(last + (kind == 'bn'))
        name = f'features.{number}.conv.{inner}.{rest}'
    return name


@pytest.mark.parametrize('stem', OTHERS)
def test_other_networks_are_told_apart(stem, tmp_path):
    classifier = build(load(CONFIGS / 'imagenet' / f'{stem}.py'))
    expected = classifier.state_dict()
    torch.save(dict(state_dict=as_released(stem, expected), epoch=99), tmp_path / 'released.pth')
    checkpoint = convert_released(tmp_path / 'released.pth')
    assert checkpoint['meta']['config'] == f'configs/imagenet/{stem}.py'
    assert checkpoint['state_dict'].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(checkpoint['state_dict'][name], value), name


def test_mask_rcnn_is_converted_too(tmp_path):
    detector = build(load(CONFIGS / 'coco/mask-rcnn_odconv-resnet50-4x_fpn_1x_coco.py'))
    expected = detector.state_dict()
    backbone = {name: value for name, value in expected.items() if name.startswith('backbone.')}
    weights = {name: value for name, value in expected.items() if name not in backbone}
    for name, value in as_released('resnet', backbone).items():
        weights[name.replace('module.', 'backbone.')] = value
    weights['backbone.fc.bias'] = torch.zeros(1000)
    torch.save(dict(state_dict=weights), tmp_path / 'released.pth')
    released = read_released(tmp_path / 'released.pth')
    meta = released.checkpoint['meta']
    assert meta['config'] == 'configs/coco/mask-rcnn_odconv-resnet50-4x_fpn_1x_coco.py'
    assert released.unused == ['backbone.fc.bias']
    assert released.checkpoint['state_dict'].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(released.checkpoint['state_dict'][name], value), name


RESNET, MOBILENET = GOLDEN
DAMAGES = {
    'two numbers of kernels': (
        MOBILENET,
        put(features__2__conv__0__0__weight=(2, 48, 8, 1, 1)),
        r'one number of kernels, but found \{.*2.*\}',
    ),
    'a plain convolution': (
        MOBILENET,
        put(features__2__conv__0__0__weight=(48, 8, 1, 1)),
        r'one number of kernels, but found',
    ),
    'no kernels': (
        MOBILENET,
        drop('features.2.conv.0.0.weight'),
        r'it lacks features\.2\.conv\.0\.0\.weight',
    ),
    'no attention': (
        MOBILENET,
        drop('features.2.conv.0.0.attention.kernel_fc.'),
        r'looks like ImageClassifier .* but is damaged .*kernel_fc',
    ),
    'unknown name': (MOBILENET, put(features__1__extra=(1,)), r'features\.1\.extra .* unknown'),
    'unknown head': (RESNET, put(layer1__0__conv1__other=(1,)), r'damaged .*conv1\.other'),
}


@pytest.mark.parametrize(('name', 'edit', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(name, edit, message, released_file, tmp_path):
    weights = load_checkpoint(released_file(name))['model']
    edit(weights)
    torch.save(dict(model=weights), tmp_path / 'edited.pth')
    with pytest.raises(ValueError, match=message) as error:
        convert_released(tmp_path / 'edited.pth', tmp_path / 'mmkw.pth')
    assert str(tmp_path / 'edited.pth') in str(error.value)
    assert not (tmp_path / 'mmkw.pth').exists()


def test_old_name_of_the_tool_converts_too(released_file):
    tool = load_tool('model_converters/kernelwarehouse_to_mmkw')
    tool.main([str(released_file(MOBILENET)), '--dry-run'])
