"""Which layers of a network can have a warehouse, and why others cannot."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..ops.mixing import Shape
from .replacing import is_replaceable, match_layers, some_of, why_special
from .tracing import Inputs, LayerTrace, tensors_in


def outside_use(trace: LayerTrace) -> str | None:
    """Why another kernel for every input cannot reach all uses of the layer's weight, if so."""
    if trace.reads_weight:
        return 'its weight is read outside its forward'
    if trace.calls == 0:
        return 'its forward is never called'
    return None


def constant_layers(*networks: nn.Module) -> set[str]:
    """Layers whose weight is the same number everywhere, by name.

    A network initialises a layer so on purpose: offsets of deformable convolutions, the last layer
    of a non-local block and gates are 0, so that they do nothing at first. Random kernels in their
    place would change what the network computes. On the meta device there are no values, and none
    are found.

    Args:
        networks: a network as it is built and, if that differs, as its initialisation leaves it.
    """
    return {
        name
        for network in networks
        for name, layer in network.named_modules()
        if is_replaceable(layer)
        and (weight := layer._parameters.get('weight')) is not None
        and weight.numel() > 1
        and not weight.is_meta
        and bool(weight.detach().min() == weight.detach().max())
    }


def leave_constant_plain(matches: Mapping[str, str], constant: set[str]) -> list[str]:
    """The layers to replace: those that patterns match, without constant ones.

    A layer that is named in full is replaced all the same, with a warning that says what it costs.

    Args:
        matches: the name or pattern that matched each layer, see :func:`match_layers`.
        constant: see :func:`constant_layers`.
    """
    warn_of_constant([name for name in matches if name in constant and matches[name] == name])
    return [name for name in matches if name not in constant or matches[name] == name]


def warn_of_constant(names: Sequence[str]) -> None:
    """Say what it costs to replace layers that start constant, if there are any."""
    if names:
        warnings.warn(
            f'{some_of(names)}: the network starts these layers at a constant on purpose, and '
            f'random kernels take its place, so that it computes something else from the start; '
            f'leave them out to keep it',
            stacklevel=3,
        )


def unusable_layers(
    network: nn.Module,
    traces: Mapping[str, LayerTrace],
    samples: int,
    patterns: Iterable[str],
    exclude: Iterable[str],
    constant: set[str],
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
        if not is_replaceable(layer):
            return why_special(layer)
        if name not in wanted:
            return 'not among the layers asked for'
        if uses[id(layer.weight)] > 1:
            return 'another layer has the same weight'
        if name in constant:
            return 'starts at a constant, as its network initialises it'
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
