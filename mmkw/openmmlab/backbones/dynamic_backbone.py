"""Any backbone of OpenMMLab with dynamic convolutions in the places of plain ones."""

from __future__ import annotations

from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ...arguments import check_names, checks_arguments_of
from ...methods.base import DynamicLayer
from ...methods.registry import all_layers, method_of_layer
from ...networks.convert import plan
from ..attention_norms import options_from_config
from .any_backbone import build_plain
from .initial_weights import initialised_copy
from .start_record import record_starts


@MODELS.register_module(name='DynamicBackbone')
@checks_arguments_of('DynamicBackbone')
def build_dynamic_backbone(
    backbone: dict,
    layer: dict,
    layers: Iterable[str],
    exclude: Iterable[str] = (),
    share_routing_in: Iterable[str] = (),
    only_attentions_train_in: Iterable[str] = (),
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
        layer: ``type``, a layer of a method, such as ``'ODConv2d'`` or ``'KWConv2d'`` (each layer
            with a warehouse of its own), and its options. Other convolutions and linear layers
            become those of the same method, where it has them.
        layers: names or patterns of the layers to replace, see
            :func:`~mmkw.networks.match_layers`.
            Layers that the network starts at a constant on purpose, such as the offsets of
            deformable convolutions, stay plain unless they are named in full.
        exclude: names or patterns of layers that stay plain. Defaults to none.
        share_routing_in: names of modules, such as blocks, whose CondConv layers share the routing
            of the first one. Defaults to none.

    Raises:
        ValueError: if ``layer`` names no method or has an unknown argument, a pattern matches
            nothing, no layer is left to replace or one is matched twice, the method has no layer
            for a matched one, or ``only_attentions_train_in`` names no module.
    """
    options = dict(options_from_config(layer))
    kind = options.pop('type', None)
    method = method_of_layer(kind)
    if method is None:
        kinds = ', '.join(known.__name__ for known in all_layers())
        raise ValueError(
            f'layer of DynamicBackbone must have a type, one of {kinds}, but got {kind!r}'
        )
    if share_routing_in:
        options['share_routing_in'] = share_routing_in
    check_names(f'layer of DynamicBackbone: {kind}', options, method.option_names())
    network = build_plain(backbone)
    network_plan = plan(
        network,
        method(**options),
        layers=layers,
        exclude=exclude,
        initial=initialised_copy(network),
    )
    print_log(str(network_plan), logger='current')
    network_plan.apply(network)
    record_starts(network)
    freeze_but_attentions(network, only_attentions_train_in)
    # Some backbones freeze their stages only here.
    network.train(network.training)
    return network


def freeze_but_attentions(network: nn.Module, names: Iterable[str]) -> None:
    """Freeze all parameters of some modules but those of the modules inside dynamic layers.

    Args:
        network: has dynamic layers.
        names: of the modules.

    Raises:
        ValueError: if the network has no module of a name.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(
                f'only_attentions_train_in names {name!r}, but {type(network).__name__} has no '
                f'such module; give a name from named_modules()'
            )
        modules[name].requires_grad_(False)
        for layer in modules[name].modules():
            for part in layer.children() if isinstance(layer, DynamicLayer) else ():
                part.requires_grad_(True)
