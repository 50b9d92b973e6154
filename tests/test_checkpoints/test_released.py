"""Released ResNet checkpoints, converted by the tool, against the released models' outputs."""

import subprocess
import sys
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
}


@pytest.fixture(scope='module', params=GOLDEN)
def converted(request, tmp_path_factory):
    """A released file, run through the command-line tool."""
    golden = load_golden(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    torch.save(make_released_checkpoint(golden), folder / 'released.pth')
    command = [sys.executable, TOOL, folder / 'released.pth', folder / 'mmkw.pth']
    subprocess.run(command, check=True)
    return golden, folder / 'mmkw.pth'


def build_classifier(config_name):
    config = Config.fromfile(CONFIGS / 'imagenet' / config_name)
    init_default_scope(config.default_scope)
    config.model.backbone.drop_path_rate = 0.0
    config.model.backbone.out_indices = (0, 1, 2, 3)
    return MODELS.build(config.model)


def relative_error(actual, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    # ReLU zeroes some outputs altogether; they have to be zero here, too.
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_matches(classifier, x, expected, tolerance):
    with torch.no_grad():
        stages = classifier.backbone(x)
        logits = classifier.head(classifier.neck(stages)[-1:])
    assert relative_error(logits[:, :8], expected['logits_first8']) < tolerance
    assert relative_error(logits.norm(dim=1), expected['logits_norm']) < tolerance
    assert len(stages) == len(expected['stages']) == 4
    for stage, golden in zip(stages, expected['stages'].values()):
        assert list(stage.shape) == golden['shape']
        assert relative_error(stage.flatten(1).norm(dim=1), golden['norm']) < tolerance
        assert relative_error(stage.flatten(1)[:, :4], golden['first4']) < tolerance


def reset_running_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


def test_converted_checkpoint_matches_released_model(converted):
    golden, path = converted
    classifier = build_classifier(GOLDEN[golden['name']])
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
            assert_matches(classifier, x.to(dtype), expected, tolerance)


@pytest.fixture(scope='module')
def released_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('released') / 'released.pth'
    torch.save(make_released_checkpoint(load_golden('kw_resnet18_1x')), path)
    return path


def convert_with(released_file, tmp_path, edit):
    """Convert the released file after ``edit`` changed its state dict."""
    checkpoint = mmkw.checkpoints.load_checkpoint(released_file)
    edit(checkpoint['model'])
    torch.save(checkpoint, tmp_path / 'edited.pth')
    return mmkw.checkpoints.convert_released(tmp_path / 'edited.pth', tmp_path / 'mmkw.pth')


def test_initialises_the_backbone_of_a_detector(released_file, tmp_path):
    checkpoint = mmkw.checkpoints.convert_released(released_file, tmp_path / 'mmkw.pth')
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
    mmkw.checkpoints.convert_released(released_file, tmp_path / 'mmkw.pth')
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


def test_another_depth_is_named(released_file, tmp_path):
    def drop_a_block(state_dict):
        for name in [name for name in state_dict if name.startswith('layer3.1.')]:
            del state_dict[name]

    with pytest.raises(ValueError, match=r'no depth of .* has \(2, 2, 1, 2\) basic blocks'):
        convert_with(released_file, tmp_path, drop_a_block)
    assert not (tmp_path / 'mmkw.pth').exists()


def test_another_budget_is_named(released_file, tmp_path):
    def halve_a_warehouse(state_dict):
        state_dict['warehouse_manager.weights.3'] = torch.zeros(13, 512, 512, 1, 1)

    with pytest.raises(ValueError, match=r'no budget of .* \(13, 512, 512, 1, 1\)'):
        convert_with(released_file, tmp_path, halve_a_warehouse)
    assert not (tmp_path / 'mmkw.pth').exists()


@pytest.mark.parametrize(
    'edit',
    [
        lambda state_dict: state_dict.pop('layer1.0.conv1.attention.fc2.bias'),
        lambda state_dict: state_dict.update({'layer1.0.bn1.weight': torch.zeros(3)}),
        lambda state_dict: state_dict.update({'layer1.0.surprise': torch.zeros(3)}),
    ],
    ids=['missing', 'wrong shape', 'unexpected'],
)
def test_tensors_that_do_not_fit_are_named(released_file, tmp_path, edit):
    with pytest.raises(ValueError, match=r'looks like a released ResNet18 .*layer1\.0\.'):
        convert_with(released_file, tmp_path, edit)
    assert not (tmp_path / 'mmkw.pth').exists()


def test_tool_says_in_one_line_what_is_wrong(released_file, tmp_path):
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(released_file.read_bytes()[:100_000])
    text = tmp_path / 'text.pth'
    text.write_text('hello')
    other = tmp_path / 'other.pth'
    torch.save(dict(weight=torch.zeros(3)), other)
    payload = tmp_path / 'payload.pth'

    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)

    torch.save(dict(model={}, args=Payload()), payload)
    for path in (truncated, text, other, payload, tmp_path / 'missing.pth'):
        result = subprocess.run(
            [sys.executable, TOOL, path, tmp_path / 'mmkw.pth'], capture_output=True, text=True
        )
        assert result.returncode == 1
        assert result.stderr.startswith('error: ') and str(path) in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / 'mmkw.pth').exists()
    assert not (tmp_path / 'ran').exists()
