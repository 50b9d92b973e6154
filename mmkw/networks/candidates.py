"""Which layers of a network can have a warehouse, and why others cannot."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from ..ops.mixing import Shape
from .replacing import is_replaceable, match_layers
from .tracing import Inputs, LayerTrace, tensors_in


def outside_use(trace: LayerTrace) -> str | None:
    """Why another kernel for every input cannot reach all uses of the layer's weight, if so."""
    if trace.reads_weight:
        return 'its weight is read outside its forward'
    if trace.calls == 0:
        return 'its forward is never called'
    return None


def unusable_layers(
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
        used_outside = outside_use(trace)
        if name in excluded:
            return 'excluded'
        if used_outside is not None:
            return used_outside
        if layer._parameters.get('weight') is None:
            return 'its weight is computed from others'
        if not is_replaceable(layer):
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
        if num_positions(layer, trace.input_shape) == num_positions(layer, trace.output_shape) == 1:
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


def num_positions(layer: nn.Module, shape: Shape) -> int:
    """Positions, such as pixels or tokens, of a layer's input or output."""
    return math.prod(shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:])


def batch_size(inputs: Inputs) -> int:
    samples = min((len(tensor) for tensor in tensors_in(inputs)), default=0)
    if samples < 2:
        raise ValueError(
            f'planning needs at least 2 samples, to tell them from windows and the like, but the '
            f'inputs hold {samples}'
        )
    return samples
