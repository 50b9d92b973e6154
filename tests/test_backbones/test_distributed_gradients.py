"""Distributed training needs a gradient for all that it trains: with any frozen stages and outputs.

``DistributedDataParallel`` without ``find_unused_parameters`` stops at a parameter that wants a
gradient when the network is wrapped, and gets none. Plain networks do where outputs end before
stages that are trained. So each network is compared with its plain form.
"""

import itertools
import warnings
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.registry import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmkw  # noqa: F401

GROUPS = dict(type='GN', num_groups=2)
RESNET = dict(depth=18, base_channels=8, stem_channels=8, norm_cfg=GROUPS)
PLAIN = dict(
    ResNet=dict(type='mmpretrain.ResNet', **RESNET),
    DetectionResNet=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_cfg=GROUPS),
    ConvNeXt=dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 4, 1], channels=[8, 16, 32, 64]),
        gap_before_final_norm=False,
    ),
    MobileNetV2=dict(type='mmpretrain.MobileNetV2', widen_factor=0.5, norm_cfg=GROUPS),
    VisionTransformer=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        img_size=32,
        out_type='featmap',
    ),
    Swin=dict(
        type='mmdet.SwinTransformer', embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)
    ),
)


def kw(name):
    return dict(PLAIN[name], type=f'KW{name}')


def wrapped(name):
    return dict(
        type='KWBackbone',
        backbone=PLAIN[name],
        input_shape=(3, 32, 32),
        warehouse=dict(max_attention=1),
    )


# Plain network, network, numbers of frozen stages, numbers of outputs to choose from.
CASES = {
    'KWResNet': ('ResNet', kw('ResNet'), range(-1, 5), range(4)),
    'KWConvNeXt': ('ConvNeXt', kw('ConvNeXt'), range(5), range(4)),
    'KWMobileNetV2': ('MobileNetV2', kw('MobileNetV2'), (-1, 0, 3, 7), range(8)),
    'KWVisionTransformer': ('VisionTransformer', kw('VisionTransformer'), range(-1, 4), range(3)),
    'KWBackbone(mmdet.ResNet)': (
        'DetectionResNet', wrapped('DetectionResNet'), range(-1, 5), range(4)
    ),
    'KWBackbone(mmdet.Swin)': ('Swin', wrapped('Swin'), range(-1, 4), range(4)),
    'DynamicBackbone': (
        'ResNet',
        dict(
            type='DynamicBackbone',
            backbone=PLAIN['ResNet'],
            layer=dict(type='ODConv2d'),
            layers=['layer*.conv?'],
        ),
        range(-1, 5),
        range(4),
    ),
    'RecalibratedResNet': (
        'ResNet',
        dict(type='RecalibratedResNet', recalibration=dict(type='SE'), **RESNET),
        range(-1, 5),
        range(4),
    ),
    'conv_cfg': (
        'ResNet', dict(PLAIN['ResNet'], conv_cfg=dict(type='KWConv2d')), range(-1, 5), range(4)
    ),
}  # fmt: skip


class Model(nn.Module):
    """A backbone and something after it that always learns, as necks and heads do."""

    def __init__(self, config, frozen_stages, out_indices):
        super().__init__()
        torch.manual_seed(0)
        choice = dict(frozen_stages=frozen_stages, out_indices=out_indices)
        if 'backbone' in config:
            config = dict(config, backbone=dict(config['backbone'], **choice))
        else:
            config = dict(config, **choice)
        self.backbone = MODELS.build(config)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return sum((self.scale * y).square().mean() for y in self.backbone(x))


def without_gradient(config, frozen_stages, out_indices):
    """The parameters that distributed training would wait for in vain.

    It looks for parameters to train when it wraps the model, which is before ``model.train()``.
    MMPretrain's MobileNetV2 freezes its stages there only; it is looked at afterwards, as it is the
    measure for others.
    """
    model = Model(config, frozen_stages, out_indices)
    if config in PLAIN.values():
        model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.train()
    model(torch.randn(2, 3, 32, 32)).backward()
    return {name for name, parameter in trained.items() if parameter.grad is None}


@cache
def plain_trains(name, frozen_stages, out_indices):
    return not without_gradient(PLAIN[name], frozen_stages, out_indices)


def output_choices(outputs, all_of_them):
    """Every choice of outputs; or the last, all, an early one, and one of the first and last."""
    sizes = range(1, len(outputs) + 1)
    if all_of_them:
        return list(itertools.chain(*(itertools.combinations(outputs, size) for size in sizes)))
    return [(outputs[-1],), tuple(outputs), (outputs[1],), (outputs[0], outputs[-1])]


@pytest.mark.parametrize('all_of_them', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('case', CASES)
def test_trains_where_the_plain_network_does(case, all_of_them):
    plain, config, stages, outputs = CASES[case]
    if all_of_them and len(outputs) > 4:
        outputs = outputs[-4:]
    count = 0
    for frozen_stages in stages:
        for out_indices in output_choices(outputs, all_of_them):
            if plain_trains(plain, frozen_stages, out_indices):
                missing = without_gradient(config, frozen_stages, out_indices)
                assert not missing, (frozen_stages, out_indices, missing)
                count += 1
    assert count > 1


@pytest.mark.parametrize('case', ['KWResNet', 'KWBackbone(mmdet.ResNet)'])
def test_idle_cells_that_no_output_reaches(case):
    """Warned of; where outputs reach the frozen stages, their cells get gradients."""
    config = dict(CASES[case][1], freeze_idle_warehouses=False)
    with pytest.warns(UserWarning, match='get no gradient.*find_unused_parameters=True'):
        missing = without_gradient(config, 4, (1,))
    assert missing and all(name.endswith('.cells') for name in missing)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not without_gradient(config, 4, (1, 3))
        assert not without_gradient(config, 2, (1,)) or not plain_trains(CASES[case][0], 2, (1,))


def train(rank, meeting, choices):
    """Two iterations of each in this process; the second one stops where gradients are missing."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{meeting}', rank=rank, world_size=2)
    for case, frozen_stages, out_indices in choices:
        model = DistributedDataParallel(Model(CASES[case][1], frozen_stages, out_indices)).train()
        for _ in range(2):
            model(torch.randn(2, 3, 32, 32)).backward()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    choices = []
    for case, (plain, _, stages, outputs) in CASES.items():
        for frozen_stages in (stages[0], 1, stages[-1]):
            for out_indices in output_choices(outputs, False)[:2]:
                if plain_trains(plain, frozen_stages, out_indices):
                    choices.append((case, frozen_stages, out_indices))
    assert {case for case, *_ in choices} == set(CASES)
    mp.spawn(train, (str(tmp_path / 'meeting'), choices), nprocs=2)
