"""Stages and kinds: which layers of a network share a warehouse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..ops.mixing import Shape
from .attention_cost import Sharing, Totals
from .candidates import num_positions
from .plan_table import shorten_names
from .replacing import in_channels_of, kernel_shape_of
from .tracing import LayerTrace

# Numbers of positions that differ by less count as one resolution: a class token more, or a
# border that a convolution without padding takes away.
_SAME_RESOLUTION = 0.1


@dataclass(frozen=True)
class Layer:
    """A layer that can have a warehouse.

    Attributes:
        name: in the network.
        kernel_shape: ``(out_channels, in_channels / groups, *kernel_size)``.
        in_channels: over all groups.
        kind: layers of another kind do not share with it.
        stage: its output's resolution, numbered from 1.
        input_stage: its input's; ``None`` if no layer has that output.
        totals: what it brings into a warehouse.
    """

    name: str
    kernel_shape: Shape
    in_channels: int
    kind: str
    stage: int
    input_stage: int | None
    totals: Totals

    @property
    def is_depthwise(self) -> bool:
        return self.kind.startswith('depthwise')


Groups = dict[str, list[Layer]]


def describe_layers(
    network: nn.Module,
    traces: Mapping[str, LayerTrace],
    plain: Mapping[str, str],
    sharing: Sharing,
) -> list[Layer]:
    """The layers that can have a warehouse, in the order of their first calls."""
    resolutions: list[int] = []

    def stage(positions: int) -> int | None:
        for number, resolution in enumerate(resolutions, 1):
            if abs(positions - resolution) <= _SAME_RESOLUTION * max(positions, resolution):
                return number
        return None

    usable = {name: network.get_submodule(name) for name in traces if name not in plain}
    for name, module in usable.items():
        positions = num_positions(module, traces[name].output_shape)
        if stage(positions) is None:
            resolutions.append(positions)
    layers = []
    for name, module in usable.items():
        shape, in_channels = kernel_shape_of(name, module), in_channels_of(module)
        layers.append(
            Layer(
                name=name,
                kernel_shape=shape,
                in_channels=in_channels,
                kind=_kind(module, shape, sharing.spatial_partition),
                stage=stage(num_positions(module, traces[name].output_shape)),
                input_stage=stage(num_positions(module, traces[name].input_shape)),
                totals=sharing.totals(shape, in_channels),
            )
        )
    return layers


def _kind(layer: nn.Module, kernel_shape: Shape, spatial_partition: bool) -> str:
    if isinstance(layer, nn.Linear):
        return 'linear'
    kind = 'dense'
    if layer.groups > 1:
        kind = 'depthwise' if kernel_shape[1] == 1 else 'grouped'
    size = kernel_shape[2:]
    if not spatial_partition:
        return kind + 'x'.join(map(str, size))
    return kind if len(size) == 2 else f'{kind}{len(size)}d'


def group_by_stage(layers: Iterable[Layer]) -> Groups:
    groups: Groups = {}
    for layer in layers:
        groups.setdefault(_warehouse(layer.stage, layer.kind), []).append(layer)
    return groups


def _warehouse(stage: int, kind: str) -> str:
    return f'stage{stage}_{kind}'


def move_entries(groups: Groups) -> list[str]:
    """Move layers at the entry of a stage to the previous stage's warehouse where that helps.

    Returns:
        A note for each stage that gave layers away.
    """
    notes = []
    widths: dict[int, set[int]] = {}
    for layer in itertools.chain.from_iterable(groups.values()):
        widths.setdefault(layer.stage, set()).add(layer.kernel_shape[0])
    for name in sorted(groups, key=lambda name: groups[name][0].stage):
        layers = groups[name]
        previous = _warehouse(layers[0].stage - 1, layers[0].kind)
        if previous not in groups:
            continue
        their_cell = _divisors(groups[previous])
        moved = [
            layer
            for layer in layers
            if _fits(layer, their_cell)
            and (
                layer.input_stage == layer.stage - 1
                or (layer is layers[0] and layer.in_channels in widths[layer.stage - 1])
            )
        ]
        rest = [layer for layer in layers if layer not in moved]
        old_cell, new_cell = _divisors(layers), _divisors(rest)
        if not rest or new_cell == old_cell:
            continue
        moved = [layer for layer in moved if not _fits(layer, new_cell)]
        groups[name] = [layer for layer in layers if layer not in moved]
        groups[previous] = groups[previous] + moved
        notes.append(
            f'{name} leaves {shorten_names(layer.name for layer in moved)} to {previous}, so that '
            f'its cells have {new_cell[0]}x{new_cell[1]} channels or an equal part of them, not '
            f'{old_cell[0]}x{old_cell[1]}.'
        )
    return notes


def _divisors(layers: Sequence[Layer]) -> tuple[int, int]:
    """Greatest common divisors of the output and of the input channels."""
    return (
        math.gcd(*(layer.kernel_shape[0] for layer in layers)),
        math.gcd(*(layer.kernel_shape[1] for layer in layers)),
    )


def _fits(layer: Layer, cell: tuple[int, int]) -> bool:
    return layer.kernel_shape[0] % cell[0] == 0 and layer.kernel_shape[1] % cell[1] == 0
