"""Any backbone of OpenMMLab with dynamic convolutions in the places of plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ...arguments import checks_arguments_of
from ...methods import (
    CGConv2d,
    CondConv2d,
    CondLinear,
    DCDConv2d,
    DCDLinear,
    DYConv2d,
    ODConv2d,
    WeightNetConv2d,
)
from ...methods.base import DynamicLayer
from ...methods.cond_conv import share_routing
from ...methods.kernel_warehouse.layers import KW_LAYERS
from ...networks.candidates import constant_layers, leave_constant_plain
from ...networks.replacing import match_layers, replace_layers, some_of
from ..attention_norms import options_from_config
from .any_backbone import build_plain
from .initial_weights import initialised_copy

# The layers of each method by their number of spatial dimensions; 0 for linear ones. A method goes
# by the name of its two-dimensional convolution.
METHODS: dict[str, Mapping[int, type[DynamicLayer]]] = {
    'ODConv2d': {2: ODConv2d},
    'DYConv2d': {2: DYConv2d},
    'CondConv2d': {0: CondLinear, 2: CondConv2d},
    'DCDConv2d': {0: DCDLinear, 2: DCDConv2d},
    'CGConv2d': {2: CGConv2d},
    'WeightNetConv2d': {2: WeightNetConv2d},
    'KWConv2d': KW_LAYERS,
}


@MODELS.register_module(name='DynamicBackbone')
@checks_arguments_of('DynamicBackbone')
def build_dynamic_backbone(
    backbone: dict,
    layer: dict,
    layers: Iterable[str],
    exclude: Iterable[str] = (),
    share_routing_in: Iterable[str] = (),
) -> nn.Module:
    """Build any backbone and replace some of its layers by those of a dynamic convolution.

    Returns the backbone itself: class, module names, outputs, ``init_weights``, frozen stages and
    ``norm_eval`` are those of the wrapped backbone. Which layers were replaced is logged.

    ODConv in both convolutions of each block of a ResNet18::

        backbone=dict(
            type='DynamicBackbone',
            backbone=dict(type='mmpretrain.ResNet', depth=18),
            layer=dict(type='ODConv2d', num_kernels=4),
            layers=['layer*.conv?'])

    Args:
        backbone: config of the plain backbone, of MMPretrain, MMDetection or any other registry
            (``'mmpretrain.RegNet'``; without a scope the config's default scope).
        layer: ``type``, one of ``'ODConv2d'``, ``'DYConv2d'``, ``'CondConv2d'``, ``'DCDConv2d'``,
            ``'CGConv2d'``, ``'WeightNetConv2d'`` and ``'KWConv2d'`` (each layer with a warehouse of
            its own), and arguments of that class. Linear layers become those of the same method,
            where it has them.
        layers: names or patterns of the layers to replace, see
            :func:`~mmkw.networks.match_layers`.
            Layers that the network starts at a constant on purpose, such as the offsets of
            deformable convolutions, stay plain unless they are named in full.
        exclude: names or patterns of layers that stay plain. Defaults to none.
        share_routing_in: names of modules, such as blocks, whose CondConv layers share the routing
            of the first one. Defaults to none.

    Raises:
        ValueError: if ``layer`` names no method or has an unknown argument, a pattern matches
            nothing, no layer is left to replace or one is matched twice, or the method has no layer
            for a matched one.
    """
    options = dict(options_from_config(layer))
    method = options.pop('type', None)
    if method not in METHODS:
        raise ValueError(
            f'layer of DynamicBackbone must have a type, one of {", ".join(METHODS)}, but got '
            f'{method!r}'
        )
    network = build_plain(backbone)
    excluded = match_layers(network, exclude)
    matches = {
        name: pattern
        for name, pattern in match_layers(network, layers).items()
        if name not in excluded
    }
    names = leave_constant_plain(matches, constant_layers(network, initialised_copy(network)))
    if not names:
        raise ValueError(
            f'DynamicBackbone replaces no layer of {type(network).__name__}: layers={layers!r} and '
            f'exclude={exclude!r} leave none, but for layers that start at a constant on purpose '
            f'({some_of([name for name in matches if name not in names])}); name one at least'
        )
    try:
        replaced = replace_layers(network, names, METHODS[method], **options)
    except TypeError as error:
        raise ValueError(f'layer of DynamicBackbone: {error}') from error
    for block in share_routing_in:
        share_routing(_routed_layers(network, block))
    print_log(
        f'{method} in {len(replaced)} layers of {type(network).__name__}: '
        f'{some_of(list(replaced))}',
        logger='current',
    )
    # Some backbones freeze their stages only here.
    network.train(network.training)
    return network


def _routed_layers(network: nn.Module, block: str) -> list[Any]:
    try:
        module = network.get_submodule(block)
    except AttributeError as error:
        raise ValueError(
            f'share_routing_in of DynamicBackbone names {block!r}, but '
            f'{type(network).__name__} has no such module'
        ) from error
    found = [layer for layer in module.modules() if isinstance(layer, (CondConv2d, CondLinear))]
    if not found:
        raise ValueError(
            f'share_routing_in of DynamicBackbone names {block!r}, which has no CondConv layers'
        )
    return found
