"""Fully sharded training in two processes equals training in one."""

import functools
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.registry import FUNCTIONS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import mmkw  # noqa: F401
from mmkw.networks import WarehouseConfig, apply_plan
from mmkw.openmmlab.sharding import keep_warehouses_whole

NUM_PROCESSES = 2


def make_network():
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        for _ in range(3)
    ]
    network = nn.Sequential(*blocks)
    apply_plan(network, {'shared': WarehouseConfig(['*.0'])})
    return network.eval()


def loss(network, rank):
    images = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(rank))
    return network(images).square().mean()


def train_sharded(rank, port):
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', address, rank=rank, world_size=NUM_PROCESSES)
    policy = functools.partial(FUNCTIONS.get('keep_warehouses_whole'), min_num_params=500)
    sharded = FullyShardedDataParallel(
        make_network(), auto_wrap_policy=policy, device_id=torch.device('cpu')
    )
    units = sharded.fsdp_modules(sharded)
    assert len(units) == 4, 'the network and its blocks'
    loss(sharded, rank).backward()
    torch.optim.SGD(sharded.parameters(), lr=1.0).step()

    network = make_network()
    sum(loss(network, other) / NUM_PROCESSES for other in range(NUM_PROCESSES)).backward()
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    untrained = dict(make_network().named_parameters())
    assert not torch.equal(untrained['warehouses.shared.cells'], network.warehouses['shared'].cells)
    with FullyShardedDataParallel.summon_full_params(sharded):
        found = {
            name.replace('_fsdp_wrapped_module.', ''): value
            for name, value in sharded.named_parameters()
        }
        for name, expected in network.named_parameters():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_training_equals_training_in_one_process():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(train_sharded, (port,), NUM_PROCESSES)


@pytest.mark.parametrize('recurse', [True, False])
def test_units(recurse):
    network = make_network()
    decide = functools.partial(
        keep_warehouses_whole, recurse=recurse, nonwrapped_numel=10**6, min_num_params=500
    )
    assert decide(network[0])
    assert decide(network[0][0]) is not recurse, 'a layer is whole, its parts are not looked at'
    assert not decide(network.warehouses) and not decide(network.warehouses['shared'])
