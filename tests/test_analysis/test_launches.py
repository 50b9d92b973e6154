"""What the host launches: exact numbers, so that none is added unseen."""

import pytest
import torch
from mmengine.config import Config
from tiny_runs import ROOT, load_tool

from mmkw.analysis import count_launches
from mmkw.methods.kernel_warehouse import KWConv2d

# Puts the tool's folder on the path.
load_tool('analysis_tools/benchmark')

from benchmarking import Candidate, Network, Setting, group_by_twin  # noqa: E402
from benchmarking.host import as_released, released_forward, training_step  # noqa: E402


def test_views_and_allocations_are_not_launched():
    x = torch.randn(3, 4)
    assert count_launches(lambda: x.t().reshape(2, 6).view(-1)[1:]) == 1  # the copy of reshape
    assert count_launches(lambda: torch.empty(3).new_empty(2)) == 0
    linear = torch.nn.Linear(4, 2)
    assert count_launches(lambda: linear(x)) == 1


@pytest.mark.parametrize(
    'stem, plain, today, released',
    [
        ('kw-resnet18-1x_8xb32-100e_in1k', 165, 933, 915),
        ('kw-resnet50-1x_8xb512-300e_in1k', 410, 2400, 2374),
    ],
)
def test_launches_of_a_training_step(stem, plain, today, released):
    config = Config.fromfile(ROOT / 'configs/imagenet' / f'{stem}.py')
    networks = [
        Network(candidate, Setting.set_up(resolution=64))
        for candidate in group_by_twin([Candidate.of(config, stem)])[0]
    ]
    steps = [training_step(network, *network.make_batch(2)) for network in networks]
    assert [count_launches(step) for step in steps] == [plain, today]
    with as_released(networks[1].model):
        assert count_launches(steps[1]) == released


@pytest.mark.parametrize('options', [{}, {'stride': 2, 'bias': True}, {'groups': 2, 'dilation': 2}])
def test_the_way_of_the_release_computes_the_same(options):
    torch.manual_seed(0)
    layer = KWConv2d(8, 8, 3, **{'padding': 1, 'bias': False, **options}).double()
    layer.warehouse.temperature.fill_(0.3)
    x = torch.randn(3, 8, 7, 7, dtype=torch.double)
    torch.testing.assert_close(released_forward(layer, x), layer(x))
