"""Applying plans to networks, and the temperature of whole models."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import mmkw
from mmkw.methods import get_temperature, set_temperature
from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear
from mmkw.networks import WarehouseConfig, apply_plan, partition_network


def make_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.Flatten(2),
        nn.Linear(16, 8),
    )


PLAN = {'body': WarehouseConfig(['1.0', '2'], budget=2), 'head': WarehouseConfig(['4'])}


def test_apply_plan_replaces_the_named_layers_only():
    plain = make_network()
    expected = partition_network(plain, PLAN)
    network = apply_plan(plain, PLAN)
    assert network is plain
    kinds = {name: type(module) for name, module in network.named_modules()}
    assert (kinds['0'], kinds['1.0'], kinds['2'], kinds['4']) == (
        nn.Conv2d,
        KWConv2d,
        KWConv2d,
        KWLinear,
    )
    assert not network[1][0].bias.any() and network[2].bias is None
    for name, warehouse in network.warehouses.items():
        partition = expected[name]
        assert warehouse.cells.shape == (partition.num_cells, *partition.cell_shape)
    assert network[1][0].warehouse is network[2].warehouse is network.warehouses['body']
    names = set(network.state_dict())
    assert {'warehouses.body.cells', 'warehouses.body.temperature'} <= names
    assert not any('warehouse.' in name for name in names), 'shared cells are stored once'


def test_patterns_match_layers_only():
    plan = {'most': WarehouseConfig(['1.*', '[02]']), 'head': WarehouseConfig(['4'])}
    partitions = partition_network(make_network(), plan)
    assert list(partitions['most'].kernels) == ['0', '1.0', '2']
    assert (
        partitions['most'].kernels
        == partition_network(make_network(), {'most': WarehouseConfig(['2', '0', '1.0'])})[
            'most'
        ].kernels
    )


class Twice(nn.Module):
    """Uses one convolution under two names, and reads the weight of a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.second(self.first(x)).mean((2, 3))
        return nn.functional.linear(x, self.linear.weight)


def test_layers_of_two_names_are_replaced_under_both():
    network = apply_plan(Twice(), {'all': WarehouseConfig(['first'])}).eval()
    assert network.first is network.second and isinstance(network.first, KWConv2d)
    assert network(torch.zeros(2, 8, 5, 5)).shape == (2, 8)


def test_reading_the_weight_of_a_kw_layer_names_it():
    network = apply_plan(Twice(), {'all': WarehouseConfig(['linear'])})
    with pytest.raises(
        AttributeError, match=r"layer 'linear' has no weight to read.* leave it out"
    ):
        network(torch.zeros(2, 8, 5, 5))
    assert not hasattr(network.linear, 'weight'), 'which initialisers ask for'
    with pytest.raises(AttributeError, match='KWConv2d has no weight'):
        _ = KWConv2d(8, 8, 1).weight


def test_frozen_layers_stay_frozen():
    network = make_network()
    network[1].requires_grad_(False)
    network[4].requires_grad_(False)
    apply_plan(network, PLAN)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in network.named_parameters()
        if name.startswith(('1.', '4.', 'warehouses.head.'))
    }, 'the warehouse of the body has a layer that trains'


def test_apply_plan_keeps_type_device_and_mode():
    network = apply_plan(make_network().double().eval(), PLAN)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert not network[2].attention.norm.training
    assert apply_plan(make_network().to('meta'), PLAN)[2].attention.fc1.weight.is_meta
    assert network(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 16, 8)


@pytest.mark.parametrize('kind', ['channels_last', 'share_memory', 'to_empty', 'float64'])
def test_cells_take_what_is_applied_to_a_network(kind):
    network = apply_plan(make_network(), PLAN)
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    before = network.warehouses['body'].cells.clone()
    {
        'channels_last': lambda: network.to(memory_format=torch.channels_last),
        'share_memory': network.share_memory,
        'to_empty': lambda: network.to_empty(device='meta'),
        'float64': network.double,
    }[kind]()
    cells = network.warehouses['body'].cells
    assert cells.is_contiguous() and cells.shape == before.shape
    if kind == 'to_empty':
        assert cells.is_meta
        return
    assert torch.equal(cells, before.to(cells.dtype))
    assert cells.grad.shape == cells.shape and cells.grad.dtype == cells.dtype
    assert cells.is_shared() == (kind == 'share_memory')
    x = torch.randn(2, 3, 8, 8, dtype=cells.dtype)
    assert network(x).isfinite().all()


def test_layers_made_without_budget_wait_for_a_plan():
    network = nn.Sequential(
        KWConv2d(8, 8, 3, padding=1, budget=None), KWConv2d(8, 8, 1, budget=None)
    )
    apply_plan(network, {'all': WarehouseConfig(['0', '1'])})
    assert network(torch.zeros(2, 8, 5, 5)).shape == (2, 8, 5, 5)
    assert network[0].partition.num_cells == 10


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_warehouses_of_their_own(copied):
    network = apply_plan(make_network(), PLAN).eval()
    twin = copied(network)
    assert twin[2].warehouse is twin.warehouses['body']
    assert twin[2].warehouse is not network.warehouses['body']
    x = torch.randn(2, 3, 8, 8)
    y = network(x.clone())
    set_temperature(twin, 1)
    assert torch.equal(network(x), y)
    assert not torch.allclose(twin(x), y)


def test_state_dict_without_temperature_loads_strictly_as_0():
    source, target = apply_plan(make_network(), PLAN), apply_plan(make_network(), PLAN)
    set_temperature(target, 0.5)
    state_dict = {k: v for k, v in source.state_dict().items() if 'temperature' not in k}
    target.load_state_dict(state_dict, strict=True)
    assert get_temperature(target) == 0


def test_state_dict_of_another_sharing_is_refused():
    """Non-strict loading, MMEngine's default, included."""
    other = {'body': PLAN['body'], 'classifier': PLAN['head']}
    state_dict = apply_plan(make_network(), other).state_dict()
    with pytest.raises(ValueError, match=r'no warehouses.head.cells; .* body, classifier, those'):
        apply_plan(make_network(), PLAN).load_state_dict(state_dict, strict=False)


def test_set_temperature_does_not_read_the_device():
    """On the meta device any read of a value raises, as a stand-in for a wait on a real one."""
    network = apply_plan(make_network(), PLAN).to('meta')
    set_temperature(network, 0.5)
    with pytest.raises(RuntimeError, match='[Mm]eta'):
        get_temperature(network)


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        ({'a': WarehouseConfig(['5'])}, r"'5' matches no .* of Sequential; it has 0, 1.0, 2, 4"),
        ({'a': WarehouseConfig(['x*'])}, r"'x\*' matches no .* of Sequential; it has 0, 1.0, 2, 4"),
        ({'a': WarehouseConfig(['?', '2'])}, r"'2' is matched by '\?' and again by '2'"),
        ({'a': WarehouseConfig(['2']), 'b': WarehouseConfig(['2'])}, "'2' is in warehouse 'a' and"),
        (
            {'a': WarehouseConfig(['1.1'])},
            "layer '1.1' is a BatchNorm2d; dynamic layers",
        ),
        ({'a': WarehouseConfig(['2', '4'])}, r"warehouse 'a': kernels of \[1, 2\] spatial"),
        ({'a': WarehouseConfig(['2'], budget=1 / 3)}, "warehouse 'a': budget 1/3 leaves no whole"),
        (
            {'a': WarehouseConfig(['2'], attention=dict(basis_ratio=1 / 16))},
            'basis_ratio=0.0625 needs cells of',
        ),
    ],
)
def test_bad_plans_are_named(plan, message):
    with pytest.raises(ValueError, match=message):
        apply_plan(make_network(), plan)


def test_a_plan_is_applied_once():
    with pytest.raises(ValueError, match='already has an attribute `warehouses`'):
        apply_plan(apply_plan(make_network(), PLAN), PLAN)


def test_temperature_needs_kw_layers():
    with pytest.raises(ValueError, match='Sequential has no layers with a temperature'):
        mmkw.set_temperature(make_network(), 0)
    with pytest.raises(ValueError, match='Sequential has no layers with a temperature'):
        mmkw.get_temperature(make_network())


def test_unequal_temperatures_are_named():
    network = apply_plan(make_network(), PLAN)
    network.warehouses['head'].temperature.fill_(1)
    with pytest.raises(ValueError, match=r'different temperatures \[0.0, 1.0\]'):
        mmkw.get_temperature(network)


class Counted(nn.Sequential):
    """A sequence with a constructor of its own."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    'make', [lambda: nn.Sequential(*Counted().children()), Counted], ids=['Sequential', 'subclass']
)
def test_warehouses_are_no_layer_of_a_sequence(make):
    plain = make()
    layers = len(plain)
    network = apply_plan(make(), {'all': WarehouseConfig(['0', '2'])}).eval()
    x = torch.randn(2, 4, 3, 3)
    restored = pickle.loads(pickle.dumps(network))
    for some in (network, copy.deepcopy(network), restored):
        assert isinstance(some, type(plain)) and type(some).__name__ == type(plain).__name__
        assert len(some) == layers == len(list(some))
        assert list(some)[-1] is some[-1] is some[2] and isinstance(some[-1], KWConv2d)
        assert [type(m) for m in some[1:]] == [nn.ReLU, KWConv2d]
        assert [type(m) for m in some[:-1]] == [KWConv2d, nn.ReLU]
        with pytest.raises(IndexError):
            some[layers]
        assert 'warehouses.all.cells' in some.state_dict()
        assert 'warehouses.all.cells' in dict(some.named_parameters())
        assert some[0].warehouse is some[2].warehouse is some.warehouses['all']
        assert torch.equal(some(x), network(x))
        y = x
        for layer in some:
            y = layer(y)
        assert torch.equal(y, network(x))


def test_pruned_cells_stay_pruned_in_training():
    network = apply_plan(make_network(), PLAN)
    warehouse = network.warehouses['body']
    prune.l1_unstructured(warehouse, 'cells', amount=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8, 8)
    kept = warehouse.cells.detach() != 0
    for _ in range(2):
        before = warehouse.cells_orig.detach().clone()
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        assert not torch.equal(warehouse.cells_orig[kept], before[kept])
        assert torch.equal(warehouse.cells_orig[~kept], before[~kept])

    network.eval()
    y = network(x)
    prune.remove(warehouse, 'cells')
    assert torch.equal(warehouse.cells != 0, kept)
    torch.testing.assert_close(network(x), y)
