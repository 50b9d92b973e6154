"""Planning by itself: which layers of any network share a warehouse, and which stay plain.

One run of the plain network shows its layers in order, at which resolution each works and whether
it is called at all. The rest is arithmetic on shapes: nothing is built before a plan is applied.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from torch import nn

from .attention import count_parameters, hidden_and_fixed
from .layers import NormLayer
from .network_plan import (
    NetworkPlan,
    group_by_reason,
    in_channels_of,
    shorten_names,
)
from .partition import CellRatio, Ratio, Shape, as_fraction, default_cell_ratio
from .plan import WarehouseConfig, apply_plan, is_layer, kernel_shape_of, match_layers
from .tracing import Inputs, LayerTrace, tensors_in, trace_layers

# Numbers of positions that differ by less count as one resolution: a class token more, or a
# border that a convolution without padding takes away.
_SAME_RESOLUTION = 0.1
# The part of the attentions' parameters that may go to what no way of sharing can save.
_UNSHARED_ATTENTION = Fraction(1, 2)


def plan_network(
    network: nn.Module,
    inputs: Inputs,
    budget: Ratio = 1,
    layers: Iterable[str] = ('*',),
    exclude: Iterable[str] = (),
    cell_ratio: CellRatio = None,
    spatial_partition: bool = True,
    reduction: Ratio = 1 / 16,
    norm_layer: NormLayer = 'BatchNorm1d',
    max_attention: Ratio = 1 / 4,
) -> NetworkPlan:
    """Plan the warehouses of any plain network, changing nothing.

    Layers of one stage and kind share a warehouse. The stage is the resolution of the layer's
    output, numbered in the order in which the network first gets there; the kinds are dense,
    depthwise and other grouped convolutions and linear layers, each by its spatial dimensions.
    As in the paper's ResNets (Appendix A.3, Table 15), layers at the entry of a stage, which still
    take the previous stage's resolution or channels, go to the previous stage's warehouse if the
    cells of their own thereby grow and those of the other do not shrink.

    Some layers stay plain; the plan says which, and why: those that see the network's own input
    (stem, patch embedding), the projections of attentions, which the paper leaves plain except
    for the value, and what cannot take an attention over the positions of one sample: layers that
    see a single position (squeeze-and-excitation), that do not have the samples first (windows),
    that are never called or have their weight read or computed outside, and special kinds of
    layers.

    The attentions of all layers together have at most ``max_attention`` times the parameters of
    the plain ``network``, all of those counted. What a layer's attention takes in a warehouse of
    its own, no sharing can save: layers where this is most for their kernel stay plain until the
    rest needs no more than half of what is allowed. Then warehouses are split in two, always the
    one and at the place that saves most, until the attentions fit: a warehouse of all layers of
    odd widths has tiny cells, and attentions grow with the square of their number.

    Args:
        network: the plain network.
        inputs: for one run of it, see :func:`trace_layers`; two samples or more of the size at
            which it will train.
        budget: ``b``. Below 1 it is that of dense layers, as depthwise ones keep 1 in the paper.
            Where it leaves no whole number of cells, the number is rounded up. Defaults to 1.
        layers: names or patterns of the layers to consider, see :func:`match_layers`. Defaults to
            all.
        exclude: names or patterns of layers that stay plain. Defaults to none.
        cell_ratio: cell channels relative to the greatest common divisors of the layers', one
            number or (output, input); where that does not divide them, the next smaller number of
            channels that does. Defaults to ``None``: 1 if the budget is at least 1, otherwise 1/2.
        spatial_partition, reduction, norm_layer: see :class:`WarehouseConfig`.
        max_attention: see above. Defaults to 1/4.

    Raises:
        ValueError: if no layer can have a warehouse, a pattern matches nothing or a layer is
            matched twice, the network cannot run on the inputs or they hold fewer than 2 samples,
            an option is no positive number, or ``cell_ratio`` is above 1.
    """
    limit = as_fraction('max_attention', max_attention) * count_parameters(network)
    sharing = _Sharing(
        as_fraction('budget', budget),
        _as_ratios(cell_ratio),
        spatial_partition,
        reduction,
        norm_layer,
    )
    traces = trace_layers(network, inputs)
    plain = _unusable(network, traces, _batch_size(inputs), layers, exclude)
    usable = _describe_layers(network, traces, plain, sharing)
    if not usable:
        raise ValueError(
            f'no layer of {type(network).__name__} can have a warehouse: '
            f'{"; ".join(line.strip() for line in group_by_reason(plain)) or "it has no layers"}'
        )
    plain.update(_leave_costly_plain(usable, sharing, limit))
    usable = [layer for layer in usable if layer.name not in plain]
    if not usable:
        raise ValueError(
            f'the attention of each layer of {type(network).__name__} would alone take more than '
            f'half of what max_attention={max_attention} allows them all; raise max_attention, or '
            f'lower reduction'
        )
    groups = _group_by_stage(usable)
    notes = _move_entries(groups)
    groups, splits = _split_costly(groups, sharing, limit)
    plan = {}
    for name, group in groups.items():
        plan[name], rounding = sharing.config(name, group)
        notes += rounding
    return NetworkPlan(network, plan, plain, [*notes, *splits])


def complete_plan(
    network: nn.Module,
    inputs: Inputs,
    plan: Mapping[str, WarehouseConfig | Mapping[str, Any]],
    **defaults,
) -> NetworkPlan:
    """Check a plan of one's own on one run of the plain network, changing nothing.

    Args:
        network: the plain network.
        inputs: for one run of it, see :func:`trace_layers`.
        plan: by the warehouse's name a :class:`WarehouseConfig` or its arguments as a mapping.
        defaults: arguments of :class:`WarehouseConfig` for what the mappings leave out.

    Raises:
        ValueError: if the plan is empty, an argument is unknown, a pattern matches nothing, a
            layer is matched twice, never called, or has its weight read outside its forward, layers
            cannot share a warehouse as configured, or the network cannot run on the inputs.
    """
    if not plan:
        raise ValueError('the plan has no warehouses; name one at least, with its layers')
    network_plan = NetworkPlan(
        network, {name: _config(name, options, defaults) for name, options in plan.items()}
    )
    traces = trace_layers(network, inputs)
    broken = {
        name: reason
        for name, reason in ((name, _outside_use(traces[name])) for name in network_plan.layers)
        if reason is not None
    }
    if broken:
        raise ValueError(
            f'the plan names layers of {type(network).__name__} that cannot take their kernels '
            f'from a warehouse: {", ".join(f"{k!r} ({v})" for k, v in broken.items())}; leave '
            f'them out of the plan'
        )
    return network_plan


def warehouse_network(
    network: nn.Module,
    inputs: Inputs,
    plan: Mapping[str, WarehouseConfig | Mapping[str, Any]] | None = None,
    **options,
) -> nn.Module:
    """Turn any plain network into its KernelWarehouse form, in place.

    Args:
        network: the plain network.
        inputs: for one run of it, see :func:`trace_layers`.
        plan: which layers share which warehouse, see :func:`complete_plan`. Defaults to ``None``:
            :func:`plan_network` decides.
        options: of :func:`plan_network`; with a plan, the defaults of its warehouses.

    Returns:
        ``network``.

    Raises:
        ValueError: see :func:`plan_network`, :func:`complete_plan` and :func:`apply_plan`.
    """
    return apply_plan(network, make_plan(network, inputs, plan, **options))


def make_plan(
    network: nn.Module,
    inputs: Inputs,
    plan: Mapping[str, WarehouseConfig | Mapping[str, Any]] | None = None,
    **options,
) -> NetworkPlan:
    """The plan that :func:`warehouse_network` with these arguments applies."""
    if plan is None:
        return plan_network(network, inputs, **options)
    return complete_plan(network, inputs, plan, **options)


def _config(
    name: str, options: WarehouseConfig | Mapping[str, Any], defaults: Mapping[str, Any]
) -> WarehouseConfig:
    if isinstance(options, WarehouseConfig):
        return options
    known = [field.name for field in fields(WarehouseConfig)]
    options = {**defaults, **options}
    unknown = [key for key in options if key not in known]
    if unknown or 'layers' not in options:
        wrong = f'has no argument {unknown[0]!r}' if unknown else 'needs the argument layers'
        raise ValueError(f'warehouse {name!r} {wrong}; its arguments are {", ".join(known)}')
    return WarehouseConfig(**options)


# Which layers can have a warehouse


def _outside_use(trace: LayerTrace) -> str | None:
    """Why another kernel for every input cannot reach all uses of the layer's weight, if so."""
    if trace.reads_weight:
        return 'its weight is read outside its forward'
    if trace.calls == 0:
        return 'its forward is never called'
    return None


def _unusable(
    network: nn.Module,
    traces: Mapping[str, LayerTrace],
    samples: int,
    patterns: Iterable[str],
    exclude: Iterable[str],
) -> dict[str, str]:
    """Why layers cannot or shall not have a warehouse."""
    wanted, excluded = match_layers(network, patterns), match_layers(network, exclude)
    projections = _attention_projections(network)
    uses = Counter(
        id(weight)
        for module in network.modules()
        for weight in module._parameters.values()
        if weight is not None
    )

    def reason(name: str, layer: nn.Module, trace: LayerTrace) -> str | None:
        outside_use = _outside_use(trace)
        if name in excluded:
            return 'excluded'
        if outside_use is not None:
            return outside_use
        if layer._parameters.get('weight') is None:
            return 'its weight is computed from others'
        if not is_layer(layer):
            return f'a {type(layer).__name__} is no plain convolution or linear layer'
        if name not in wanted:
            return 'not among the layers asked for'
        if uses[id(layer.weight)] > 1:
            return 'another layer has the same weight'
        if trace.sees_input:
            return "sees the network's own input"
        if name in projections:
            return f'in a self-attention ({projections[name]})'
        if trace.input_shape[0] != samples or trace.output_shape[0] != samples:
            return 'its input does not have the samples first'
        if _positions(layer, trace.input_shape) == _positions(layer, trace.output_shape) == 1:
            return 'sees a single position'
        return None

    reasons = {name: reason(name, network.get_submodule(name), traces[name]) for name in traces}
    return {name: why for name, why in reasons.items() if why is not None}


def _attention_projections(network: nn.Module) -> dict[str, str]:
    """Layers inside of self-attentions, with the class of the outermost attention.

    An attention without queries, such as one over channels, is a module like others.
    """
    found: dict[str, str] = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        if not name or not re.search('attention|msa', kind, re.IGNORECASE):
            continue
        parameters = (parameter for parameter, _ in module.named_parameters())
        if any(_QUERY.search(parameter) for parameter in parameters):
            for layer, _ in module.named_modules(prefix=name):
                found.setdefault(layer, kind)
    return found


_QUERY = re.compile(r'(^|[._])(q|qk|qkv|kqv|query|in_proj)([._]|$)')


def _positions(layer: nn.Module, shape: Shape) -> int:
    """Positions, such as pixels or tokens, of a layer's input or output."""
    return math.prod(shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:])


def _batch_size(inputs: Inputs) -> int:
    samples = min((len(tensor) for tensor in tensors_in(inputs)), default=0)
    if samples < 2:
        raise ValueError(
            f'planning needs at least 2 samples, to tell them from windows and the like, but the '
            f'inputs hold {samples}'
        )
    return samples


# Stages and kinds


@dataclass(frozen=True)
class _Layer:
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
    totals: _Totals

    @property
    def is_depthwise(self) -> bool:
        return self.kind.startswith('depthwise')


_Groups = dict[str, list[_Layer]]


def _describe_layers(
    network: nn.Module,
    traces: Mapping[str, LayerTrace],
    plain: Mapping[str, str],
    sharing: _Sharing,
) -> list[_Layer]:
    """The layers that can have a warehouse, in the order of their first calls."""
    resolutions: list[int] = []

    def stage(positions: int) -> int | None:
        for number, resolution in enumerate(resolutions, 1):
            if abs(positions - resolution) <= _SAME_RESOLUTION * max(positions, resolution):
                return number
        return None

    usable = {name: network.get_submodule(name) for name in traces if name not in plain}
    for name, module in usable.items():
        positions = _positions(module, traces[name].output_shape)
        if stage(positions) is None:
            resolutions.append(positions)
    layers = []
    for name, module in usable.items():
        shape, in_channels = kernel_shape_of(name, module), in_channels_of(module)
        layers.append(
            _Layer(
                name=name,
                kernel_shape=shape,
                in_channels=in_channels,
                kind=_kind(module, shape, sharing.spatial_partition),
                stage=stage(_positions(module, traces[name].output_shape)),
                input_stage=stage(_positions(module, traces[name].input_shape)),
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


def _group_by_stage(layers: Iterable[_Layer]) -> _Groups:
    groups: _Groups = {}
    for layer in layers:
        groups.setdefault(_warehouse(layer.stage, layer.kind), []).append(layer)
    return groups


def _warehouse(stage: int, kind: str) -> str:
    return f'stage{stage}_{kind}'


def _move_entries(groups: _Groups) -> list[str]:
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


def _divisors(layers: Sequence[_Layer]) -> tuple[int, int]:
    """Greatest common divisors of the output and of the input channels."""
    return (
        math.gcd(*(layer.kernel_shape[0] for layer in layers)),
        math.gcd(*(layer.kernel_shape[1] for layer in layers)),
    )


def _fits(layer: _Layer, cell: tuple[int, int]) -> bool:
    return layer.kernel_shape[0] % cell[0] == 0 and layer.kernel_shape[1] % cell[1] == 0


# What attentions take


@dataclass(frozen=True)
class _Totals:
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

    def __add__(self, other: _Totals) -> _Totals:
        return _Totals(
            math.gcd(self.out_channels, other.out_channels),
            math.gcd(self.in_channels, other.in_channels),
            self.size + other.size,
            self.logits + other.logits,
            self.fixed + other.fixed,
        )


@dataclass(frozen=True)
class _Sharing:
    """The options of all warehouses, and what follows from them for one."""

    budget: Fraction
    cell_ratio: tuple[Fraction, Fraction] | None
    spatial_partition: bool
    reduction: Ratio
    norm_layer: NormLayer

    def totals(self, kernel_shape: Shape, in_channels: int) -> _Totals:
        hidden, fixed = hidden_and_fixed(in_channels, self.reduction, self.norm_layer)
        size = math.prod(kernel_shape if self.spatial_partition else kernel_shape[:2])
        return _Totals(*kernel_shape[:2], size, (hidden + 1) * size, fixed)

    def attention(self, totals: _Totals, is_depthwise: bool) -> int:
        """Parameters of the attentions of all layers of one warehouse."""
        cell = math.prod(self._cell(totals, is_depthwise))
        cells = math.ceil(self._budget(is_depthwise) * (totals.size // cell))
        return totals.fixed + totals.logits // cell * (cells + 1)

    def config(self, name: str, layers: Sequence[_Layer]) -> tuple[WarehouseConfig, list[str]]:
        """The warehouse of these layers, and notes on where it does not have the budget."""
        is_depthwise = layers[0].is_depthwise
        totals = sum((layer.totals for layer in layers), _Totals())
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
            [layer.name for layer in layers],
            budget=Fraction(cells, mixtures),
            cell_ratio=(
                Fraction(cell[0], totals.out_channels),
                Fraction(cell[1], totals.in_channels),
            ),
            spatial_partition=self.spatial_partition,
            reduction=self.reduction,
            norm_layer=self.norm_layer,
        )
        return config, notes

    def _budget(self, is_depthwise: bool) -> Fraction:
        return max(self.budget, Fraction(1)) if is_depthwise else self.budget

    def _cell(self, totals: _Totals, is_depthwise: bool) -> tuple[int, int]:
        """The cell's output and input channels."""
        ratios = self.cell_ratio
        if ratios is None:
            ratios = [Fraction(default_cell_ratio(self._budget(is_depthwise)))] * 2
        channels = totals.out_channels, totals.in_channels
        return tuple(_largest_divisor(number, ratio) for number, ratio in zip(channels, ratios))


def _as_ratios(cell_ratio: CellRatio) -> tuple[Fraction, Fraction] | None:
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


def _leave_costly_plain(
    layers: Iterable[_Layer], sharing: _Sharing, limit: Fraction
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


def _split_costly(groups: _Groups, sharing: _Sharing, limit: Fraction) -> tuple[_Groups, list[str]]:
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
    result: _Groups = {}
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

    layers: list[_Layer]
    attention: int
    saving: int
    halves: tuple[list[_Layer], list[_Layer]]


def _best_split(layers: list[_Layer], sharing: _Sharing) -> _Split:
    """Try all cuts of the row of layers, and each kernel shape apart from the others."""
    totals = [layer.totals for layer in layers]
    shapes: dict[Shape, _Totals] = {}
    for layer in layers:
        shapes[layer.kernel_shape] = shapes.get(layer.kernel_shape, _Totals()) + layer.totals
    is_depthwise = layers[0].is_depthwise

    def attention(*halves: _Totals) -> int:
        return sum(sharing.attention(half, is_depthwise) for half in halves)

    heads = list(itertools.accumulate(totals))
    tails = list(itertools.accumulate(reversed(totals)))[::-1]
    whole = attention(heads[-1])
    costs = {cut: attention(heads[cut - 1], tails[cut]) for cut in range(1, len(layers))}
    if len(shapes) > 1:
        for shape, own in shapes.items():
            others = (other for key, other in shapes.items() if key != shape)
            costs[shape] = attention(own, sum(others, _Totals()))
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
