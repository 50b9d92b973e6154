"""What a plan comes to: cells, mixtures and parameters of one network, before it is applied."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

from torch import nn

from ..methods.kernel_warehouse.attention import AttentionConfig, count_parameters
from ..methods.kernel_warehouse.layers import KWLayer, Warehouse
from ..methods.kernel_warehouse.partition import KernelPartition, WarehousePartition
from .plan import Plan, WarehouseConfig, apply_plan, partition_network
from .replacing import in_channels_of
from .tracing import is_weighted


class NetworkPlan(Mapping[str, WarehouseConfig]):
    """A plan for one network, with what it comes to.

    A mapping of warehouses by name, which :func:`apply_plan` takes. Printing it shows a table.

    Args:
        network: the plain network.
        plan: its warehouses.
        plain: why layers stay plain, by name; layers that neither this nor the plan names are
            "not in the plan".
        notes: what else a reader should know, one sentence each.

    Attributes:
        plain: why each convolution or linear layer that stays plain does so, by name.
        notes: which layers changed their stage, which warehouses were split, and why.
        partitions: each warehouse's cells and mixtures, by name.
        attention: the parameters of the attentions of each warehouse's layers, by name.
        plain_parameters: parameters of the plain network.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        plain: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._configs = dict(plan)
        self._network = type(network).__name__
        self.partitions = partition_network(network, plan)
        self.attention = {
            name: sum(
                count_parameters(
                    AttentionConfig.of(config.attention).build_on_meta(
                        in_channels_of(network.get_submodule(layer)), kernel
                    )
                )
                for layer, kernel in self.partitions[name].kernels.items()
            )
            for name, config in plan.items()
        }
        self.plain_parameters = count_parameters(network)
        self.plain = _plain_layers(network, self.layers, plain or {})
        self.notes = list(notes)

    @classmethod
    def of_built(cls, network: nn.Module) -> NetworkPlan:
        """Read the plan of a network that has its warehouses already.

        Of the warehouses' options, it then knows the layers and the budget.

        Raises:
            ValueError: if it has none.
        """
        if not hasattr(network, 'warehouses'):
            raise ValueError(f'{type(network).__name__} has no warehouses, so no plan either')
        plan = cls.__new__(cls)
        plan._network = type(network).__name__
        partitions = built_partitions(network)
        plan.partitions = {
            name: partitions[warehouse] for name, warehouse in network.warehouses.items()
        }
        plan._configs = {
            name: WarehouseConfig(
                list(part.kernels), budget=Fraction(part.num_cells, part.num_mixtures)
            )
            for name, part in plan.partitions.items()
        }
        plan.attention = {
            name: sum(
                count_parameters(network.get_submodule(layer).attention) for layer in part.kernels
            )
            for name, part in plan.partitions.items()
        }
        new = plan.cells + sum(plan.attention.values())
        plan.plain_parameters = count_parameters(network) - new + plan.kernels
        plan.plain = _plain_layers(network, plan.layers, {})
        plan.notes = []
        return plan

    def __getitem__(self, warehouse: str) -> WarehouseConfig:
        return self._configs[warehouse]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)

    def apply(self, network: nn.Module) -> nn.Module:
        """Change the network that was planned, see :func:`apply_plan`."""
        return apply_plan(network, self)

    @property
    def layers(self) -> list[str]:
        """All layers that have a warehouse."""
        return [layer for part in self.partitions.values() for layer in part.kernels]

    @property
    def kernels(self) -> int:
        """Parameters of the plain kernels that warehouses replace."""
        return sum(
            math.prod(kernel.kernel_shape)
            for part in self.partitions.values()
            for kernel in part.kernels.values()
        )

    @property
    def cells(self) -> int:
        """Parameters of all kernel cells."""
        return sum(part.num_cells * math.prod(part.cell_shape) for part in self.partitions.values())

    @property
    def parameters(self) -> int:
        """Parameters of the network with its warehouses and attentions."""
        return self.plain_parameters - self.kernels + self.cells + sum(self.attention.values())

    def __str__(self) -> str:
        rows = [
            ('warehouse', 'layers', 'first .. last', 'b', 'n', 'cell', 'm', 'in cells', 'attention')
        ]
        for name, part in self.partitions.items():
            layers = list(part.kernels)
            first_last = layers[0] if len(layers) == 1 else f'{layers[0]} .. {layers[-1]}'
            rows.append(
                (
                    name,
                    f'{len(layers)}',
                    first_last,
                    f'{Fraction(part.num_cells, part.num_mixtures)}',
                    f'{part.num_cells}',
                    'x'.join(map(str, part.cell_shape)),
                    f'{part.num_mixtures}',
                    f'{part.num_cells * math.prod(part.cell_shape):,}',
                    f'{self.attention[name]:,}',
                )
            )
        planned = len(self.layers)
        lines = [
            f'KernelWarehouse plan of {self._network}: {planned} of {planned + len(self.plain)} '
            f'convolutions and linear layers, in {len(self)} warehouse{"s" * (len(self) != 1)}',
            *align(rows, left=(0, 2)),
        ]
        if self.plain:
            lines += ['Plain layers:', *group_by_reason(self.plain)]
        if self.notes:
            lines += ['Notes:', *(f'  {note}' for note in self.notes)]
        attention = sum(self.attention.values())
        lines.append(
            f'Parameters: {self.plain_parameters:,} plain, {self.parameters:,} with warehouses '
            f'(kernels {self.kernels:,} -> cells {self.cells:,} + attentions {attention:,}, '
            f'{attention / self.plain_parameters:.1%} of the plain network)'
        )
        return '\n'.join(lines)


def built_partitions(network: nn.Module) -> dict[Warehouse, WarehousePartition]:
    """The cells and mixtures of each warehouse of a network that has its warehouses already.

    Warehouses that single layers own are among them. They come in the order in which the layers
    first use them.
    """
    kernels: dict[Warehouse, dict[str, KernelPartition]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, KWLayer) and not layer.awaits_plan:
            kernels.setdefault(layer.warehouse, {})[name] = layer.partition
    return {
        warehouse: WarehousePartition(tuple(warehouse.cells.shape[1:]), len(warehouse.cells), users)
        for warehouse, users in kernels.items()
    }


def _plain_layers(
    network: nn.Module, planned: Collection[str], reasons: Mapping[str, str]
) -> dict[str, str]:
    return {
        name: reasons.get(name, 'not in the plan')
        for name, module in network.named_modules()
        if is_weighted(module) and name not in planned
    }


def group_by_reason(plain: Mapping[str, str]) -> list[str]:
    """A line for each reason, without what it has in parentheses, and its layers."""
    groups: dict[str, list[str]] = {}
    for name, reason in plain.items():
        groups.setdefault(reason.split(' (')[0], []).append(name)
    return [f'  {reason}: {shorten_names(names)}' for reason, names in groups.items()]


def shorten_names(names: Iterable[str]) -> str:
    """Names, those as one that differ in their numbers only: ``layer*.*.conv1 (16)``."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r'\d+', '*', name), []).append(name)
    return ', '.join(
        found[0] if len(found) == 1 else f'{pattern} ({len(found)})'
        for pattern, found in patterns.items()
    )


def align(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of a table; the columns with these numbers to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        '  '.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
