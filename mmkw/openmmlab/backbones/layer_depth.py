"""Depths of warehouses, for learning rates that fall from layer to layer."""

from __future__ import annotations

from torch import nn

from ...methods.kernel_warehouse.layers import KWLayer


def first_user(network: nn.Module, warehouse: str) -> str:
    """The name of the first layer that uses the network's warehouse of this name."""
    return next(
        name
        for name, layer in network.named_modules()
        if isinstance(layer, KWLayer) and layer.warehouse is network.warehouses[warehouse]
    )


def name_by_depth(network: nn.Module, param_name: str, prefix: str = '') -> str:
    """A parameter's name as a plain network knows it: cells go by the first layer that uses them.

    Args:
        network: has a ``warehouses`` attribute.
        param_name: the parameter's name, with the prefix.
        prefix: of the network in its model, such as ``'backbone.'``.
    """
    cells = prefix + 'warehouses.'
    if not param_name.startswith(cells):
        return param_name
    warehouse = param_name[len(cells) :].partition('.')[0]
    return f'{prefix}{first_user(network, warehouse)}.cells'


class WarehouseDepths:
    """``get_layer_depth`` of a network whose class knows nothing of warehouses.

    Args:
        network: a backbone of which the class has ``get_layer_depth``, with warehouses.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        name = name_by_depth(self.network, param_name, prefix)
        return type(self.network).get_layer_depth(self.network, name, prefix)
