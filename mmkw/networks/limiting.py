"""Keeping the attentions of all layers within a limit: layers stay plain, warehouses are split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ..ops.mixing import Shape
from .attention_cost import Sharing, Totals
from .stages import Groups, Layer

# The part of the attentions' parameters that may go to what no way of sharing can save.
_UNSHARED_ATTENTION = Fraction(1, 2)


def leave_costly_plain(
    layers: Iterable[Layer], sharing: Sharing, limit: Fraction
) -> dict[str, str]:
    """Why layers stay plain whose attention takes most for the kernel, until the rest fits."""
    alone = {layer: sharing.attention(layer.totals, layer.is_depthwise) for layer in layers}
    total = sum(alone.values())
    reasons = {}
    by_cost = sorted(alone, key=lambda layer: alone[layer] / math.prod(layer.kernel_shape))
    while total > _UNSHARED_ATTENTION * limit:
        layer = by_cost.pop()
        total -= alone[layer]
        reasons[layer.name] = (
            f'its attention costs too much ({alone[layer]:,} parameters alone, for a kernel of '
            f'{math.prod(layer.kernel_shape):,})'
        )
    return reasons


def split_costly(groups: Groups, sharing: Sharing, limit: Fraction) -> tuple[Groups, list[str]]:
    """Split warehouses, always where it saves most, until the attentions fit into the limit.

    Returns:
        The warehouses, and a note for each that was split.
    """
    parts = {name: [_best_split(layers, sharing)] for name, layers in groups.items()}
    before = {name: split.attention for name, (split,) in parts.items()}
    total = sum(before.values())
    while total > limit:
        name, split = max(
            ((name, split) for name, splits in parts.items() for split in splits),
            key=lambda item: item[1].saving,
        )
        parts[name].remove(split)
        parts[name] += [_best_split(half, sharing) for half in split.halves]
        total -= split.saving
    result: Groups = {}
    notes = []
    for name, splits in parts.items():
        if len(splits) == 1:
            result[name] = groups[name]
            continue
        splits.sort(key=lambda split: groups[name].index(split.layers[0]))
        result.update({f'{name}_{i}': split.layers for i, split in enumerate(splits, 1)})
        after = sum(split.attention for split in splits)
        notes.append(
            f'{name} is split into {len(splits)}: its attentions would have {before[name]:,} '
            f'parameters, and so have {after:,}.'
        )
    return result, notes


@dataclass(frozen=True)
class _Split:
    """Layers of one warehouse, its attentions' parameters, and the best way to cut it in two."""

    layers: list[Layer]
    attention: int
    saving: int
    halves: tuple[list[Layer], list[Layer]]


def _best_split(layers: list[Layer], sharing: Sharing) -> _Split:
    """Try all cuts of the row of layers, and each kernel shape apart from the others."""
    totals = [layer.totals for layer in layers]
    shapes: dict[Shape, Totals] = {}
    for layer in layers:
        shapes[layer.kernel_shape] = shapes.get(layer.kernel_shape, Totals()) + layer.totals
    is_depthwise = layers[0].is_depthwise

    def attention(*halves: Totals) -> int:
        return sum(sharing.attention(half, is_depthwise) for half in halves)

    heads = list(itertools.accumulate(totals))
    tails = list(itertools.accumulate(reversed(totals)))[::-1]
    whole = attention(heads[-1])
    costs: dict[int | Shape, int] = {
        cut: attention(heads[cut - 1], tails[cut]) for cut in range(1, len(layers))
    }
    if len(shapes) > 1:
        for shape, own in shapes.items():
            others = (other for key, other in shapes.items() if key != shape)
            costs[shape] = attention(own, sum(others, Totals()))
    if not costs:
        return _Split(layers, whole, 0, ([], []))
    cut = min(costs, key=costs.get)
    if isinstance(cut, int):
        halves = layers[:cut], layers[cut:]
    else:
        halves = (
            [layer for layer in layers if layer.kernel_shape == cut],
            [layer for layer in layers if layer.kernel_shape != cut],
        )
    return _Split(layers, whole, whole - costs[cut], halves)
