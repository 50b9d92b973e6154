"""Planning by itself: which layers of any network share a warehouse, and which stay plain.

One run of the plain network shows its layers in order, at which resolution each works and whether
it is called at all. The rest is arithmetic on shapes: nothing is built before a plan is applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from ..arguments import check_names
from ..methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions, count_parameters
from ..methods.kernel_warehouse.partition import CellRatio, Ratio, as_fraction
from .attention_cost import Sharing, Totals, as_ratios
from .candidates import batch_size, constant_layers, outside_use, unusable_layers, warn_of_constant
from .limiting import leave_costly_plain, split_costly
from .plan import WarehouseConfig
from .plan_table import NetworkPlan, group_by_reason
from .stages import describe_layers, group_by_stage, move_entries
from .tracing import Inputs, trace_layers


def plan_network(
    network: nn.Module,
    inputs: Inputs,
    budget: Ratio = 1,
    layers: Iterable[str] = ('*',),
    exclude: Iterable[str] = (),
    cell_ratio: CellRatio = None,
    spatial_partition: bool = True,
    attention: AttentionOptions = None,
    max_attention: Ratio = 1 / 4,
    allocation: str = 'one_to_one',
    initial: nn.Module | None = None,
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
    that are never called or have their weight read or computed outside, those that the network
    starts at a constant on purpose, such as the offsets of deformable convolutions, and special
    kinds of layers.

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
        spatial_partition, attention, allocation: see :class:`WarehouseConfig`.
        max_attention: see above. Defaults to 1/4.
        initial: a copy of the network as its own initialisation leaves it, where ``network`` is
            as it was built, to see which layers start at a constant. Defaults to ``None``.

    Raises:
        ValueError: if no layer can have a warehouse, a pattern matches nothing or a layer is
            matched twice, the network cannot run on the inputs or they hold fewer than 2 samples,
            an option is no positive number, or ``cell_ratio`` is above 1.
    """
    limit = as_fraction('max_attention', max_attention) * count_parameters(network)
    sharing = Sharing(
        as_fraction('budget', budget),
        as_ratios(cell_ratio),
        spatial_partition,
        AttentionConfig.of(attention),
        allocation,
    )
    traces = trace_layers(network, inputs)
    constant = constant_layers(network, *([] if initial is None else [initial]))
    plain = unusable_layers(network, traces, batch_size(inputs), layers, exclude, constant)
    usable = describe_layers(network, traces, plain, sharing)
    if not usable:
        raise ValueError(
            f'no layer of {type(network).__name__} can have a warehouse: '
            f'{"; ".join(line.strip() for line in group_by_reason(plain)) or "it has no layers"}'
        )
    plain.update(leave_costly_plain(usable, sharing, limit))
    usable = [layer for layer in usable if layer.name not in plain]
    if not usable:
        raise ValueError(
            f'the attention of each layer of {type(network).__name__} would alone take more than '
            f'half of what max_attention={max_attention} allows them all; raise max_attention, or '
            f'lower the reduction of the attentions'
        )
    groups = group_by_stage(usable)
    notes = move_entries(groups)
    groups, splits = split_costly(groups, sharing, limit)
    plan = {}
    for name, group in groups.items():
        totals = sum((layer.totals for layer in group), Totals())
        names = [layer.name for layer in group]
        plan[name], rounding = sharing.config(name, names, totals, group[0].is_depthwise)
        notes += rounding
    return NetworkPlan(network, plan, plain, [*notes, *splits])


def complete_plan(
    network: nn.Module,
    inputs: Inputs | None,
    plan: Mapping[str, WarehouseConfig | Mapping[str, Any]],
    initial: nn.Module | None = None,
    **defaults,
) -> NetworkPlan:
    """Check a plan of one's own, on one run of the plain network, changing nothing.

    Args:
        network: the plain network.
        inputs: for one run of it, see :func:`trace_layers`; with ``None`` it is not run.
        plan: by the warehouse's name a :class:`WarehouseConfig` or its arguments as a mapping.
        initial: as in :func:`plan_network`; layers that start at a constant are named in a warning.
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
    constant = constant_layers(network, *([] if initial is None else [initial]))
    warn_of_constant([name for name in network_plan.layers if name in constant])
    if inputs is None:
        return network_plan
    traces = trace_layers(network, inputs)
    broken = {
        name: reason
        for name, reason in ((name, outside_use(traces[name])) for name in network_plan.layers)
        if reason is not None
    }
    if broken:
        raise ValueError(
            f'the plan names layers of {type(network).__name__} that cannot take their kernels '
            f'from a warehouse: {", ".join(f"{k!r} ({v})" for k, v in broken.items())}; leave '
            f'them out of the plan'
        )
    return network_plan


def make_plan(
    network: nn.Module,
    inputs: Inputs,
    plan: Mapping[str, WarehouseConfig | Mapping[str, Any]] | None = None,
    **options,
) -> NetworkPlan:
    """The plan by :func:`complete_plan`, or by :func:`plan_network` where none is given."""
    if plan is None:
        return plan_network(network, inputs, **options)
    return complete_plan(network, inputs, plan, **options)


def _config(
    name: str, options: WarehouseConfig | Mapping[str, Any], defaults: Mapping[str, Any]
) -> WarehouseConfig:
    if isinstance(options, WarehouseConfig):
        return options
    known = [field.name for field in fields(WarehouseConfig)]
    attentions = [given.get('attention') for given in (defaults, options)]
    options = {**defaults, **options}
    if all(isinstance(attention, Mapping) for attention in attentions):
        options['attention'] = {**attentions[0], **attentions[1]}
    check_names(f'warehouse {name!r}', options, known)
    if 'layers' not in options:
        raise ValueError(
            f'warehouse {name!r} needs the argument layers; its arguments are {", ".join(known)}'
        )
    return WarehouseConfig(**options)
