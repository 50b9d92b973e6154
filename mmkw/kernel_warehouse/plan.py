"""Plans: which layers of a network share which warehouse, and putting KW layers in their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .layers import KWConv1d, KWConv2d, KWConv3d, KWLinear, NormLayer, _KWLayer
from .partition import CellRatio, Ratio, WarehousePartition, partition_kernels
from .warehouse import Warehouse

# What a plan puts in the place of a plain layer, by its type. A subclass may compute something
# else, so those that do not have to be added.
KW_LAYERS: dict[type[nn.Module], type[_KWLayer]] = {
    nn.Conv1d: KWConv1d,
    nn.Conv2d: KWConv2d,
    nn.Conv3d: KWConv3d,
    nn.Linear: KWLinear,
}


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
        reduction: hidden width of the attentions relative to the input's. Defaults to 1/16.
        norm_layer: norm of the attentions, see :class:`KernelAttention`. Defaults to batch norm.
        basis_ratio: non-local basis of the attentions, see :class:`KernelAttention`. Defaults
            to ``None``, none.
    """

    layers: Sequence[str]
    budget: Ratio = 1
    cell_ratio: CellRatio = None
    spatial_partition: bool = True
    reduction: Ratio = 1 / 16
    norm_layer: NormLayer = 'BatchNorm1d'
    basis_ratio: Ratio | None = None


Plan = Mapping[str, WarehouseConfig]


class Warehouses(nn.ModuleDict):
    """Warehouses by name. Passes its input on, for networks that are ``nn.Sequential``."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Non-strict loading, MMEngine's default, would leave warehouses with random cells.
        keys = (key[len(prefix) :] for key in state_dict if key.startswith(prefix))
        found = {key.partition('.')[0] for key in keys}
        missing = [name for name in self if name not in found]
        if found and missing:
            raise ValueError(
                f'the checkpoint has no {prefix}{missing[0]}.cells; its warehouses are '
                f'{", ".join(sorted(found))}, those of the model {", ".join(self)}: layers share '
                f'them in another way; set the arguments of the checkpoint in the config'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def match_layers(network: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Find the layers that names or patterns mean.

    Args:
        network: the network to search.
        patterns: names of layers, or shell-style patterns (``*``, ``?``, ``[...]``; ``*`` also
            matches dots) that match whole names of convolutions and linear layers and pass over
            all other modules.

    Returns:
        The pattern that matched, for each layer's name, in network order.

    Raises:
        ValueError: if a pattern matches nothing, two match the same layer, or a module is named
            that is neither a convolution nor a linear layer.
    """
    modules = dict(network.named_modules())
    layers = [name for name, module in modules.items() if is_layer(module)]
    matches: dict[str, str] = {}
    for pattern in patterns:
        if pattern in modules:
            kernel_shape_of(pattern, modules[pattern])
            found = [pattern]
        else:
            found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f'{pattern!r} matches no convolution or linear layer of '
                f'{type(network).__name__}; it has {some_of(layers)}'
            )
        for name in found:
            if name in matches:
                raise ValueError(
                    f'layer {name!r} is matched by {matches[name]!r} and again by {pattern!r}; '
                    f'name each layer once'
                )
            matches[name] = pattern
    return {name: matches[name] for name in layers if name in matches}


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
            )
        except ValueError as error:
            raise ValueError(f'warehouse {warehouse!r}: {error}') from error
    return partitions


def apply_plan(network: nn.Module, plan: Plan, freeze_idle: bool = True) -> nn.Module:
    """Turn a network into its KernelWarehouse form, in place.

    Puts new KW layers in the places of those that the plan names and adds their warehouses as
    ``network.warehouses``, an ``nn.ModuleDict``, on the device and of the type of the replaced
    layers. Where these were frozen, so are the new layers. Names of all other modules stay.

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
    places = _places(network)
    network.warehouses = Warehouses(
        {name: Warehouse(partition) for name, partition in partitions.items()}
    )
    for name, config in plan.items():
        warehouse = network.warehouses[name]
        for layer_name, partition in partitions[name].kernels.items():
            plain = layer = network.get_submodule(layer_name)
            if not isinstance(layer, _KWLayer):
                layer = KW_LAYERS[type(plain)].replacing(plain)
                for parent, child in places[plain]:
                    setattr(parent, child, layer)
            layer.share_warehouse(
                warehouse,
                partition,
                layer_name,
                reduction=config.reduction,
                norm_layer=config.norm_layer,
                basis_ratio=config.basis_ratio,
            )
            if layer is not plain:
                layer.train(plain.training).to(plain.weight)
                layer.requires_grad_(plain.weight.requires_grad)
                warehouse.to(plain.weight)
    if freeze_idle:
        freeze_idle_warehouses(network)
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


def _places(network: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Parent and attribute of each module; several where a network uses it under more names."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in network.modules():
        for child, module in parent._modules.items():
            if module is not None:
                places.setdefault(module, []).append((parent, child))
    return places


def is_layer(module: nn.Module) -> bool:
    """Whether a plan can name the module."""
    return type(module) in KW_LAYERS or (isinstance(module, _KWLayer) and module.partition is None)


def kernel_shape_of(name: str, module: nn.Module) -> tuple:
    """``(out_channels, in_channels / groups, *kernel_size)``; the size of linear layers is 1.

    Raises:
        ValueError: if a plan cannot name the module.
    """
    if not is_layer(module):
        raise ValueError(
            f'layer {name!r} is a {type(module).__name__}; a plan takes plain '
            f'{", ".join(sorted({kind.__name__ for kind in KW_LAYERS}))} and KW layers with '
            f'budget=None'
        )
    if isinstance(module, _KWLayer):
        return module.kernel_shape
    if isinstance(module, nn.Linear):
        return (*module.weight.shape, 1)
    return tuple(module.weight.shape)


def some_of(names: Sequence[str], limit: int = 12) -> str:
    """Names for a message: the first ones, and how many more there are."""
    shown = ', '.join(names[:limit]) or 'none'
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'
