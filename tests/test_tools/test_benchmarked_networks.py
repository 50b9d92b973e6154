"""Networks that are ready to be measured, and the plain networks that they are compared with."""

import pytest
import torch
from mmengine.config import Config
from tiny_runs import ROOT, load_tool
from torch.utils.flop_counter import FlopCounterMode

import mmkw

# Puts the tool's folder on the path.
load_tool('analysis_tools/benchmark')

from benchmarking import (  # noqa: E402
    Candidate,
    Network,
    Setting,
    build_group,
    group_by_twin,
    plain_twin,
)
from benchmarking.measuring import measure_memory, ratio_of_rounds  # noqa: E402

CONFIGS = ROOT / 'configs/imagenet'


def read_candidate(path):
    return Candidate.of(Config.fromfile(path), path.stem)


def read_released(stem):
    return read_candidate(CONFIGS / f'{stem}.py')


@pytest.fixture
def tiny(tmp_path):
    """The config of a KWResNet18 1x of a quarter of the width."""
    base = CONFIGS / 'kw-resnet18-1x_8xb32-100e_in1k.py'
    backbone = dict(base_channels=16, stem_channels=16)
    model = dict(backbone=backbone, head=dict(in_channels=128, num_classes=10))
    path = tmp_path / 'tiny-1x.py'
    Config(dict(_base_=str(base), model=model)).dump(path)
    return path


def test_networks_are_ready_to_be_measured(tiny):
    kw, plain = (
        Network(candidate, Setting.set_up(resolution=32))
        for candidate in reversed(group_by_twin([read_candidate(tiny)])[0])
    )
    assert kw.is_dynamic and not plain.is_dynamic
    assert mmkw.get_temperature(kw.model) == 0
    batch = kw.make_batch(4)

    kw.model.eval()
    output = kw.infer(*batch)
    assert output.shape == (4, 10) and not output.requires_grad
    reference = kw.by_reference_route().infer(*batch)
    torch.testing.assert_close(reference, output, rtol=1e-3, atol=1e-3 * output.std().item())
    # Evaluation sees activations of the size that training sees.
    features = kw.model.extract_feat(batch[0])[-1].detach()
    kw.model.train()
    in_training = kw.model.extract_feat(batch[0])[-1].detach()
    assert features.std() == pytest.approx(in_training.std(), rel=0.5)

    before = {name: parameter.clone() for name, parameter in kw.model.named_parameters()}
    step = kw.training_step(*batch)
    step()
    for name, parameter in kw.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is not None
        assert 'momentum_buffer' in step.optimizer.state[parameter]

    plain.model.eval()
    with FlopCounterMode(display=False) as counter:
        plain.infer(*batch)
    assert counter.get_total_flops() > 0


def test_autocast_and_channels_last(tiny):
    network = Network(
        read_candidate(tiny),
        Setting.set_up(dtype='bfloat16', channels_last=True, resolution=32),
    )
    images, samples = network.make_batch(2)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert network.model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.infer(images, samples).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in network.model.parameters())


def test_ratios_are_of_the_same_round():
    ratio = ratio_of_rounds([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert tuple(ratio) == (3.0, 2.5, 3.5)


@pytest.mark.parametrize(
    'stem, baseline',
    [
        ('kw-resnet50-1d2x_8xb512-300e_in1k', 'resnet50_8xb512-300e_in1k'),
        ('kw-mobilenet-v2-w050-1d2x_8xb32-150e_in1k', 'mobilenet-v2-w050_8xb32-150e_in1k'),
        ('kw-convnext-tiny-1x-released_8xb512-300e_in1k', 'convnext-tiny_8xb512-300e_in1k'),
        ('kw-deit-tiny-4x_8xb128-300e_in1k', 'deit-tiny_8xb128-300e_in1k'),
    ],
)
def test_plain_twin_is_the_baseline_of_the_same_recipe(stem, baseline):
    candidate = read_released(stem)
    assert plain_twin(candidate).name == baseline
    (group,) = group_by_twin([candidate, read_released(baseline)])
    assert [member.name for member in group] == [baseline, stem]


def test_networks_of_one_plain_twin_are_one_group():
    mobile, res = '_8xb32-150e_in1k', '_8xb32-100e_in1k'
    names = [
        f'kw-mobilenet-v2-w100-4x{mobile}',
        f'kw-resnet18-1x{res}',
        f'resnet18{res}',
        f'kw-mobilenet-v2-w100-1d2x{mobile}',
    ]
    groups = group_by_twin([read_released(name) for name in names])
    assert [[member.name for member in group] for group in groups] == [
        [f'mobilenet-v2-w100{mobile}', names[0], names[3]],
        [f'resnet18{res}', names[1]],
    ]


def test_compared_methods_stand_beside_kernel_warehouse():
    methods = [
        'kw-resnet18-1x_8xb32-100e_in1k',
        'odconv-resnet18-4x_8xb32-100e_in1k',
        'dyconv-resnet18-4x_8xb512-300e_in1k',
        'condconv-resnet18-8x_8xb512-300e_in1k',
        'dcd-resnet18_8xb32-100e_in1k',
    ]
    (group,) = group_by_twin([read_released(name) for name in methods])
    assert [member.name for member in group] == ['resnet18_8xb32-100e_in1k', *methods]
    mobile = [f'{method}-mobilenet-v2-w100-4x_8xb32-150e_in1k' for method in ('odconv', 'kw')]
    (group,) = group_by_twin([read_released(name) for name in mobile])
    assert [member.name for member in group[1:]] == mobile


def test_kept_memory_of_compared_methods_is_that_of_the_plain_network():
    names = ('dyconv-resnet18-4x_8xb512-300e_in1k', 'odconv-resnet18-4x_8xb32-100e_in1k')
    (group,) = group_by_twin([read_released(name) for name in names])
    setting = Setting.set_up(resolution=112)
    plain, *others = (measure_memory(n, 4, 1, setting) for n in build_group(group, setting))
    assert len(others) == 2
    for other in others:
        assert 1 <= other['kept_bytes'] / plain['kept_bytes'] < 1.1


def test_twin_of_any_backbone(tmp_path):
    path = tmp_path / 'any.py'
    regnet = dict(type='mmpretrain.RegNet', arch='regnetx_400mf')
    base = ROOT / 'configs/imagenet/resnet18_8xb32-100e_in1k.py'
    backbone = dict(_delete_=True, type='KWBackbone', backbone=regnet, warehouse=dict(budget=1))
    Config(dict(_base_=str(base), model=dict(backbone=backbone))).dump(path)
    twin = plain_twin(read_candidate(path))
    assert twin.name == 'any (plain)'
    assert twin.model['backbone'] == dict(regnet, _scope_='mmpretrain')
