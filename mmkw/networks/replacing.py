"""Finding layers of a network by name, and putting dynamic layers in their places."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.base import DynamicConvNd, DynamicLayer, PadInput
from ..ops.mixing import Shape


@dataclass(frozen=True)
class PlainLayer:
    """A kind of plain layer that dynamic layers can replace.

    Attributes:
        dimensions: spatial dimensions of a convolution; 0 for linear layers.
        pad_input: pads the input of a convolution that does so in a way of its own; takes the
            dynamic layer and the input. Defaults to ``None``, the convolution's own padding.
    """

    dimensions: int
    pad_input: PadInput | None = None


# By exact type: a subclass may compute something else, so those that do not have to be added.
PLAIN_LAYERS: dict[type[nn.Module], PlainLayer] = {
    nn.Linear: PlainLayer(0),
    nn.Conv1d: PlainLayer(1),
    nn.Conv2d: PlainLayer(2),
    nn.Conv3d: PlainLayer(3),
}


def register_plain_layer(
    kind: type[nn.Module], dimensions: int, pad_input: PadInput | None = None
) -> None:
    """Let dynamic layers replace another kind of plain layer.

    Args:
        kind: the class; it computes what the layer of ``torch.nn`` does, but for its padding.
        dimensions, pad_input: see :class:`PlainLayer`.
    """
    PLAIN_LAYERS[kind] = PlainLayer(dimensions, pad_input)


def pad_to_ceil(layer: DynamicConvNd, x: Tensor) -> Tensor:
    """Pad with zeros so that the output has ``ceil(size / stride)`` positions.

    Both sides are padded by the same amount; if it is uneven, the end gets one more.
    """
    pads: list[int] = []
    for size, kernel, stride, dilation in zip(
        x.shape[:1:-1], layer.kernel_size[::-1], layer.stride[::-1], layer.dilation[::-1]
    ):
        covered = (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1
        missing = max(covered - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads)


def match_layers(network: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Find the layers that names or patterns mean.

    Args:
        network: the network to search.
        patterns: names of layers, or shell-style patterns (``*``, ``?``, ``[...]``; ``*`` also
            matches dots). Patterns match whole names of convolutions and linear layers and pass
            over all other modules.

    Returns:
        The pattern that matched, for each layer's name, in network order.

    Raises:
        ValueError: if ``patterns`` is a single name, a pattern matches nothing, two match the same
            layer, or a module is named that is neither a convolution nor a linear layer.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ValueError(
            f"expected a list of names or patterns of layers, such as ['layer1*'], but got "
            f'{patterns!r}'
        )
    modules = dict(network.named_modules())
    layers = [name for name, module in modules.items() if is_replaceable(module)]
    matches: dict[str, str] = {}
    for pattern in patterns:
        if pattern in modules:
            kernel_shape_of(pattern, modules[pattern])
            found = [pattern]
        else:
            found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f'{pattern!r} matches no convolution or linear layer of '
                f'{type(network).__name__}; it has {some_of(layers)}{_name_special_layers(network)}'
            )
        for name in found:
            if name in matches:
                raise ValueError(
                    f'layer {name!r} is matched by {matches[name]!r} and again by {pattern!r}; '
                    f'name each layer once'
                )
            matches[name] = pattern
    return {name: matches[name] for name in layers if name in matches}


def special_layers(network: nn.Module) -> dict[str, str]:
    """Layers whose place no dynamic layer can take, though they look like it, by name, with why.

    Those of other classes compute something else, such as deformable convolutions; others compute
    their weight from other parameters, such as those with spectral norm, which would be lost.
    """
    return {
        name: why_special(module)
        for name, module in network.named_modules()
        if not is_replaceable(module)
        and not isinstance(module, DynamicLayer)
        and (isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or _looks_like_one(module))
    }


def why_special(module: nn.Module) -> str:
    """Why no dynamic layer can take the place of one that is not replaceable."""
    if module._parameters.get('weight') is None:
        return 'its weight is computed from others'
    return f'a {type(module).__name__} is no plain convolution or linear layer'


def _looks_like_one(module: nn.Module) -> bool:
    weight = module._parameters.get('weight')
    return 'Conv' in type(module).__name__ and weight is not None and weight.ndim > 2


def _name_special_layers(network: nn.Module) -> str:
    """For a message: the classes of layers that look like convolutions, but are none."""
    kinds = Counter(type(network.get_submodule(name)).__name__ for name in special_layers(network))
    if not kinds:
        return ''
    found = ', '.join(f'{count} {kind}' for kind, count in kinds.items())
    return (
        f'. Beside these it has {found}, which compute their weight or output in a way of their '
        f'own, so that no dynamic layer can take their place'
    )


def replace_layers(
    network: nn.Module,
    names: Iterable[str],
    kinds: Mapping[int, type[DynamicLayer]],
    **options,
) -> dict[str, DynamicLayer]:
    """Put dynamic layers in the places of plain ones.

    The new layers are on the device and of the type of those that they replace, in their mode,
    and frozen where these were. A layer that the network uses under several names is replaced
    under all of them. Dynamic layers that wait for a plan stay.

    Args:
        network: changed in place.
        names: of the layers to replace.
        kinds: the class of the new layers, by the number of spatial dimensions; 0 for linear.
        options: further arguments of the new layers.

    Returns:
        The new layers by name.

    Raises:
        ValueError: if a name is not that of a layer that can be replaced, or there is no class
            for its number of dimensions.
    """
    places = _places(network)
    replaced = {}
    for name in names:
        plain = network.get_submodule(name)
        kernel_shape_of(name, plain)
        if isinstance(plain, DynamicLayer):
            layer = plain
        else:
            kind = PLAIN_LAYERS[type(plain)]
            if kind.dimensions not in kinds:
                methods = ', '.join(sorted(found.__name__ for found in kinds.values()))
                raise ValueError(
                    f'layer {name!r} is a {type(plain).__name__}, but the method has only '
                    f'{methods}; leave the layer out'
                )
            layer = kinds[kind.dimensions].replacing(plain, **options)
            if kind.pad_input is not None:
                layer.pad_input = kind.pad_input
            layer.train(plain.training).to(plain.weight)
            if not plain.weight.requires_grad:
                layer.requires_grad_(False)
            for parent, child in places[plain]:
                setattr(parent, child, layer)
        layer.layer_name = name
        replaced[name] = layer
    return replaced


def _places(network: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Parent and attribute of each module; several where a network uses it under more names."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in network.modules():
        for child, module in parent._modules.items():
            if module is not None:
                places.setdefault(module, []).append((parent, child))
    return places


def is_replaceable(module: nn.Module) -> bool:
    """Whether a dynamic layer can take the module's place, or it is one that waits for a plan."""
    if isinstance(module, DynamicLayer):
        return module.awaits_plan
    # The weight is no parameter where it is computed anew for each run, as with spectral norm.
    return type(module) in PLAIN_LAYERS and module._parameters.get('weight') is not None


def kernel_shape_of(name: str, module: nn.Module) -> Shape:
    """``(out_channels, in_channels / groups, *kernel_size)``; the size of linear layers is 1.

    Raises:
        ValueError: if no dynamic layer can take the module's place.
    """
    if not is_replaceable(module):
        kind = type(module).__name__
        if type(module) in PLAIN_LAYERS:
            kind += ' whose weight is computed from others'
        raise ValueError(
            f'layer {name!r} is a {kind}; dynamic layers can replace plain '
            f'{", ".join(sorted({known.__name__ for known in PLAIN_LAYERS}))} only'
        )
    if isinstance(module, DynamicLayer):
        return module.kernel_shape
    if isinstance(module, nn.Linear):
        return (*module.weight.shape, 1)
    return tuple(module.weight.shape)


def in_channels_of(layer: nn.Module) -> int:
    """Channels of a layer's input, over all groups."""
    return layer.in_channels if hasattr(layer, 'in_channels') else layer.in_features


def some_of(names: Sequence[object], limit: int = 12) -> str:
    """Names for a message: the first ones, and how many more there are."""
    shown = ', '.join(map(str, names[:limit])) or 'none'
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'
