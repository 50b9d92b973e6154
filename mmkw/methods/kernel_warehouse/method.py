"""KernelWarehouse as a method: the options of all warehouses of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..registry import Method, register_method
from .attention import AttentionOptions
from .layers import KW_LAYERS, Warehouse
from .partition import CellRatio, Ratio


@register_method
@dataclass(frozen=True)
class KernelWarehouse(Method):
    """KernelWarehouse in the places of plain layers; the options are those of :class:`KWConv2d`.

    Attributes:
        max_attention: where a network is planned by itself, the most parameters that all attentions
            together may have, relative to those of the plain network. Defaults to 1/4.
        plan: which layers share which warehouse: for each one, by name, its arguments, of which
            ``layers`` is needed; the other options are the defaults of all. Defaults to ``None``.
    """

    layers = KW_LAYERS
    temperature_range = Warehouse.temperature_range
    of_network = ('max_attention', 'plan')
    shares = 'cells'

    budget: Ratio = 1
    cell_ratio: CellRatio = None
    spatial_partition: bool = True
    attention: AttentionOptions = None
    allocation: str = 'one_to_one'
    max_attention: Ratio = 1 / 4
    plan: Mapping[str, Any] | None = None
