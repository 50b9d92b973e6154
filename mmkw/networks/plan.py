"""Plans: which layers of a network share which warehouse, and putting KW layers in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions
from ..methods.kernel_warehouse.layers import KW_LAYERS, KWLayer, Warehouse
from ..methods.kernel_warehouse.partition import (
    CellRatio,
    Ratio,
    WarehousePartition,
    partition_kernels,
)
from .planned_sequential import keep_out_of_sequence
from .replacing import kernel_shape_of, match_layers, replace_layers

_USUAL_BUDGETS = ('1/8', '1/4', '1/2', '3/4', '1', '3/2', '2', '3', '4', '8')


@dataclass
class WarehouseConfig:
    """One warehouse of a plan.

    Attributes:
        layers: names of the layers that share the warehouse, or patterns of such names, see
            :func:`match_layers`, in any order; cells are given out in the order in which the
            layers stand in the network.
        budget: ``b``, cells per linear mixture. Defaults to 1.
        cell_ratio: cell channels relative to the greatest common divisors of the layers', one
            number or (output, input). Defaults to ``None``: 1 if the budget is at least 1, 1/2
            below.
        spatial_partition: whether a cell covers one spatial position or all. Defaults to True.
        attention: options of the layers' attentions, see :class:`AttentionConfig`.
        allocation: which cells mixtures start from, see :func:`partition_kernels`. Defaults to
            ``'one_to_one'``.
    """

    layers: Sequence[str]
    budget: Ratio = 1
    cell_ratio: CellRatio = None
    spatial_partition: bool = True
    attention: AttentionOptions = None
    allocation: str = 'one_to_one'

    def __post_init__(self) -> None:
        self.attention = AttentionConfig.of(self.attention)


Plan = Mapping[str, WarehouseConfig]


class Warehouses(nn.ModuleDict):
    """Warehouses by name."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Non-strict loading, MMEngine's default, would leave warehouses with random cells.
        keys = (key[len(prefix) :] for key in state_dict if key.startswith(prefix))
        found = {key.partition('.')[0] for key in keys}
        missing = [name for name in self if name not in found]
        if found and missing:
            raise ValueError(
                f'the checkpoint has no {prefix}{missing[0]}.cells; its warehouses are '
                f'{", ".join(sorted(found))}, those of the model {", ".join(self)}: layers share '
                f'them in another way; build the model with the arguments of the checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def partition_network(network: nn.Module, plan: Plan) -> dict[str, WarehousePartition]:
    """Work out a plan's cell shapes, ``n``, ``m`` and first cells, changing nothing.

    Args:
        network: has the layers that the plan names, plain or KW layers without a warehouse.
        plan: a :class:`WarehouseConfig` for each warehouse, by name.

    Raises:
        ValueError: if a name or pattern of the plan matches nothing, no convolution or linear
            layer, or a layer that another one matches; or if layers cannot share a warehouse as
            configured.
    """
    users: dict[str, str] = {}
    kernel_shapes: dict[str, dict[str, tuple]] = {}
    for warehouse, config in plan.items():
        kernel_shapes[warehouse] = {}
        for name in match_layers(network, config.layers):
            if name in users:
                raise ValueError(
                    f'layer {name!r} is in warehouse {users[name]!r} and again in '
                    f'{warehouse!r}; name each layer once'
                )
            users[name] = warehouse
            kernel_shapes[warehouse][name] = kernel_shape_of(name, network.get_submodule(name))
    partitions = {}
    for warehouse, config in plan.items():
        try:
            partitions[warehouse] = partition_kernels(
                kernel_shapes[warehouse],
                config.budget,
                config.cell_ratio,
                config.spatial_partition,
                config.allocation,
            )
        except ValueError as error:
            budgets = ', '.join(_valid_budgets(kernel_shapes, plan, config.budget))
            hint = f'; budgets that suit this network are {budgets}' if budgets else ''
            raise ValueError(f'warehouse {warehouse!r}: {error}{hint}') from error
    return partitions


def _valid_budgets(
    kernel_shapes: Mapping[str, Mapping[str, tuple]], plan: Plan, wrong: Ratio
) -> list[str]:
    """The usual budgets that all warehouses with a wrong one could have; none if it is right."""
    configs = {name: config for name, config in plan.items() if config.budget == wrong}

    def fits(budget: Ratio) -> bool:
        try:
            for name, config in configs.items():
                partition_kernels(
                    kernel_shapes[name],
                    budget,
                    config.cell_ratio,
                    config.spatial_partition,
                    config.allocation,
                )
        except ValueError:
            return False
        return True

    return [] if fits(wrong) else [budget for budget in _USUAL_BUDGETS if fits(budget)]


def apply_plan(network: nn.Module, plan: Plan, freeze_idle: bool = True) -> nn.Module:
    """Turn a network into its KernelWarehouse form, in place.

    Puts new KW layers in the places of those that the plan names and adds their warehouses as
    ``network.warehouses``, an ``nn.ModuleDict``, on the device and of the type of the replaced
    layers. Where these were frozen, so are the new layers. Names of all other modules stay. The
    warehouses of an ``nn.Sequential`` are none of its layers: they are not counted and not run.

    Args:
        network: the plain network; layers may also be KW layers made with ``budget=None``.
        plan: a :class:`WarehouseConfig` for each warehouse, by name.
        freeze_idle: whether a warehouse is frozen where all its layers are. Defaults to True.

    Returns:
        ``network``.

    Raises:
        ValueError: see :func:`partition_network`; or if the network has ``warehouses`` already.
    """
    if hasattr(network, 'warehouses'):
        raise ValueError(
            f'{type(network).__name__} already has an attribute `warehouses`; a plan can be '
            f'applied once'
        )
    partitions = partition_network(network, plan)
    network.warehouses = Warehouses(
        {name: Warehouse(partition) for name, partition in partitions.items()}
    )
    keep_out_of_sequence(network)
    for name, config in plan.items():
        warehouse, kernels = network.warehouses[name], partitions[name].kernels
        plain = {layer: network.get_submodule(layer) for layer in kernels}
        for layer_name, layer in replace_layers(network, kernels, KW_LAYERS, budget=None).items():
            layer.share_warehouse(warehouse, kernels[layer_name], config.attention)
            replaced = plain[layer_name]
            if layer is not replaced:
                layer.attention.train(replaced.training).to(replaced.weight)
                if not replaced.weight.requires_grad:
                    layer.attention.requires_grad_(False)
                warehouse.to(replaced.weight)
    if freeze_idle:
        freeze_idle_warehouses(network)
    return network


def freeze_idle_warehouses(network: nn.Module) -> None:
    """Stop training warehouses of which every layer's attention is frozen."""
    trained = {
        layer.warehouse
        for layer in network.modules()
        if isinstance(layer, KWLayer)
        and layer.attention is not None
        and any(parameter.requires_grad for parameter in layer.attention.parameters())
    }
    for warehouse in network.modules():
        if isinstance(warehouse, Warehouse) and warehouse not in trained:
            warehouse.requires_grad_(False)
