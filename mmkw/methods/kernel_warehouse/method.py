"""KernelWarehouse as a method: the options of all warehouses of a network."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import Method, register_method
from .attention import AttentionOptions
from .layers import KW_LAYERS, Warehouse
from .partition import CellRatio, Ratio


@register_method
@dataclass(frozen=True)
class KernelWarehouse(Method):
    """KernelWarehouse in the places of plain layers; the options are those of :class:`KWConv2d`."""

    layers = KW_LAYERS
    temperature_range = Warehouse.temperature_range
    shares = 'cells'

    budget: Ratio = 1
    cell_ratio: CellRatio = None
    spatial_partition: bool = True
    attention: AttentionOptions = None
    allocation: str = 'one_to_one'
