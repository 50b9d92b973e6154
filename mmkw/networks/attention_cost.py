"""What the attentions of layers that share a warehouse take, from shapes alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ..methods.kernel_warehouse.attention import AttentionConfig, count_parameters
from ..methods.kernel_warehouse.partition import (
    CellRatio,
    as_fraction,
    default_cell_ratio,
    partition_kernels,
)
from ..ops.mixing import Shape
from .plan import WarehouseConfig


@dataclass(frozen=True)
class Totals:
    """What one or more layers bring into a warehouse; adding up two says what both bring.

    Attributes:
        out_channels, in_channels: greatest common divisors.
        size: parameters of the kernels (over one position, if cells cover all).
        logits: for each layer ``size`` times the parameters behind one logit of its attention.
        fixed: parameters of the attentions that mixtures and cells do not change.
    """

    out_channels: int = 0
    in_channels: int = 0
    size: int = 0
    logits: int = 0
    fixed: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            math.gcd(self.out_channels, other.out_channels),
            math.gcd(self.in_channels, other.in_channels),
            self.size + other.size,
            self.logits + other.logits,
            self.fixed + other.fixed,
        )


@dataclass(frozen=True)
class Sharing:
    """The options of all warehouses, and what follows from them for one."""

    budget: Fraction
    cell_ratio: tuple[Fraction, Fraction] | None
    spatial_partition: bool
    attention_config: AttentionConfig
    allocation: str

    def totals(self, kernel_shape: Shape, in_channels: int) -> Totals:
        # Of an attention for a single mixture of a single cell, all but the logits.
        config = replace(self.attention_config, basis_ratio=None, scope='warehouse')
        partition = partition_kernels({'layer': kernel_shape}, 1, 1, spatial_partition=False)
        attention = config.build_on_meta(in_channels, partition.kernels['layer'])
        fixed = count_parameters(attention) - count_parameters(attention.fc2)
        hidden = attention.fc2.weight.shape[1]
        size = math.prod(kernel_shape if self.spatial_partition else kernel_shape[:2])
        return Totals(kernel_shape[0], kernel_shape[1], size, (hidden + 1) * size, fixed)

    def attention(self, totals: Totals, is_depthwise: bool) -> int:
        """Parameters of the attentions of all layers of one warehouse.

        With a basis they are fewer than counted here.
        """
        cell = math.prod(self._cell(totals, is_depthwise))
        budget = self._budget(is_depthwise)
        if self.attention_config.scope == 'mixture':
            seen = math.ceil(budget)
        else:
            seen = math.ceil(budget * (totals.size // cell))
        return totals.fixed + totals.logits // cell * (seen + 1)

    def config(
        self, name: str, layers: Sequence[str], totals: Totals, is_depthwise: bool
    ) -> tuple[WarehouseConfig, list[str]]:
        """The warehouse of these layers, and notes on where it does not have the budget."""
        cell = self._cell(totals, is_depthwise)
        mixtures = totals.size // math.prod(cell)
        budget = self._budget(is_depthwise)
        cells = math.ceil(budget * mixtures)
        notes = []
        if budget != self.budget:
            notes.append(f'{name} has a budget of 1, as depthwise convolutions do in the paper.')
        if cells != budget * mixtures:
            notes.append(
                f'{name} has {cells} cells: a budget of {budget} is no whole number of them for '
                f'{mixtures} mixtures.'
            )
        config = WarehouseConfig(
            list(layers),
            budget=Fraction(cells, mixtures),
            cell_ratio=(
                Fraction(cell[0], totals.out_channels),
                Fraction(cell[1], totals.in_channels),
            ),
            spatial_partition=self.spatial_partition,
            attention=self.attention_config,
            allocation=self.allocation,
        )
        return config, notes

    def _budget(self, is_depthwise: bool) -> Fraction:
        return max(self.budget, Fraction(1)) if is_depthwise else self.budget

    def _cell(self, totals: Totals, is_depthwise: bool) -> tuple[int, int]:
        """The cell's output and input channels."""
        ratios = self.cell_ratio
        if ratios is None:
            ratios = (Fraction(default_cell_ratio(self._budget(is_depthwise))),) * 2
        return (
            _largest_divisor(totals.out_channels, ratios[0]),
            _largest_divisor(totals.in_channels, ratios[1]),
        )


def as_ratios(cell_ratio: CellRatio) -> tuple[Fraction, Fraction] | None:
    if cell_ratio is None:
        return None
    ratios = cell_ratio if isinstance(cell_ratio, (tuple, list)) else (cell_ratio, cell_ratio)
    fractions = tuple(as_fraction('cell_ratio', ratio) for ratio in ratios)
    if len(fractions) != 2 or max(fractions) > 1:
        raise ValueError(
            f'cell_ratio must be one number or two (output, input channels) of at most 1, but got '
            f'{cell_ratio!r}'
        )
    return fractions


@functools.cache
def _largest_divisor(number: int, ratio: Fraction) -> int:
    """The largest divisor of a number that is at most this part of it, or 1."""
    largest = max(math.floor(number * ratio), 1)
    return next(divisor for divisor in range(largest, 0, -1) if number % divisor == 0)
