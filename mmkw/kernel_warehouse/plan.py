"""Plans: which layers of a network share which warehouse, and putting KW layers in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .layers import KWConv1d, KWConv2d, KWConv3d, KWLinear, NormLayer, _KWLayer
from .partition import Ratio, WarehousePartition, partition_kernels
from .warehouse import Warehouse

_KW_LAYERS = {
    nn.Conv1d: KWConv1d,
    nn.Conv2d: KWConv2d,
    nn.Conv3d: KWConv3d,
    nn.Linear: KWLinear,
}


@dataclass
class WarehouseConfig:
    """One warehouse of a plan.

    Attributes:
        layers: names of the modules that share the warehouse, in any order; cells are given out
            in the order in which the modules stand in the network.
        budget: ``b``, cells per linear mixture. Defaults to 1.
        cell_ratio: cell channels relative to the greatest common divisors of the layers', one
            number or (output, input). Defaults to 1.
        spatial_partition: whether a cell covers one spatial position or all. Defaults to True.
        reduction: hidden width of the attentions relative to the input's. Defaults to 1/16.
        norm_layer: norm of the attentions, see :class:`KernelAttention`. Defaults to batch norm.
        basis_ratio: non-local basis of the attentions, see :class:`KernelAttention`. Defaults
            to ``None``, none.
    """

    layers: Sequence[str]
    budget: Ratio = 1
    cell_ratio: Ratio | Sequence[Ratio] = 1
    spatial_partition: bool = True
    reduction: Ratio = 1 / 16
    norm_layer: NormLayer = 'BatchNorm1d'
    basis_ratio: Ratio | None = None


Plan = Mapping[str, WarehouseConfig]


class Warehouses(nn.ModuleDict):
    """Warehouses by name. Passes its input on, for networks that are ``nn.Sequential``."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def partition_network(network: nn.Module, plan: Plan) -> dict[str, WarehousePartition]:
    """Work out a plan's cell shapes, ``n``, ``m`` and first cells, changing nothing.

    Args:
        network: has the layers that the plan names, plain or KW layers without a warehouse.
        plan: a :class:`WarehouseConfig` for each warehouse, by name.

    Raises:
        ValueError: if the plan names a layer that is not there, is no convolution or linear
            layer, or is named twice; or if layers cannot share a warehouse as configured.
    """
    users: dict[str, str] = {}
    for warehouse, config in plan.items():
        for layer in config.layers:
            if layer in users:
                raise ValueError(
                    f'layer {layer!r} is in warehouse {users[layer]!r} and again in '
                    f'{warehouse!r}; name each layer once'
                )
            users[layer] = warehouse

    kernel_shapes: dict[str, dict[str, tuple]] = {warehouse: {} for warehouse in plan}
    for name, module in network.named_modules():
        if name in users:
            kernel_shapes[users.pop(name)][name] = _kernel_shape(name, module)
    if users:
        raise ValueError(
            f'the plan names layers that {type(network).__name__} does not have: {sorted(users)}'
        )
    partitions = {}
    for warehouse, config in plan.items():
        try:
            partitions[warehouse] = partition_kernels(
                kernel_shapes[warehouse],
                config.budget,
                config.cell_ratio,
                config.spatial_partition,
            )
        except ValueError as error:
            raise ValueError(f'warehouse {warehouse!r}: {error}') from error
    return partitions


def apply_plan(network: nn.Module, plan: Plan) -> nn.Module:
    """Turn a network into its KernelWarehouse form, in place.

    Puts KW layers in the places of those that the plan names and adds their warehouses as
    ``network.warehouses``, an ``nn.ModuleDict``, on the device and of the type of the replaced
    layers. Names of all other modules stay, and so do the static biases of the replaced layers.

    Args:
        network: the plain network; layers may also be KW layers made with ``budget=None``.
        plan: a :class:`WarehouseConfig` for each warehouse, by name.

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
    for name, config in plan.items():
        warehouse = network.warehouses[name]
        for layer_name, partition in partitions[name].kernels.items():
            plain = layer = network.get_submodule(layer_name)
            if not isinstance(layer, _KWLayer):
                layer = _KW_LAYERS[type(plain)].replacing(plain)
                layer.bias = plain.bias
                parent, _, child = layer_name.rpartition('.')
                setattr(network.get_submodule(parent), child, layer)
            layer.share_warehouse(
                warehouse,
                partition,
                reduction=config.reduction,
                norm_layer=config.norm_layer,
                basis_ratio=config.basis_ratio,
            )
            if layer is not plain:
                layer.train(plain.training).to(plain.weight)
                warehouse.to(plain.weight)
    return network


def freeze_idle_warehouses(network: nn.Module) -> None:
    """Stop training warehouses of which every layer's attention is frozen."""
    trained = {
        layer.warehouse
        for layer in network.modules()
        if isinstance(layer, _KWLayer)
        and layer.attention is not None
        and any(parameter.requires_grad for parameter in layer.attention.parameters())
    }
    for warehouse in network.modules():
        if isinstance(warehouse, Warehouse) and warehouse not in trained:
            warehouse.requires_grad_(False)


def _kernel_shape(name: str, module: nn.Module) -> tuple:
    if isinstance(module, _KWLayer) and module.partition is None:
        return module.kernel_shape
    if type(module) is nn.Linear:
        return (*module.weight.shape, 1)
    if type(module) in _KW_LAYERS:
        return tuple(module.weight.shape)
    raise ValueError(
        f'layer {name!r} is a {type(module).__name__}; a plan takes plain '
        f'{", ".join(kind.__name__ for kind in _KW_LAYERS)} and KW layers with budget=None'
    )
