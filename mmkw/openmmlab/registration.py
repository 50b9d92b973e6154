"""Making OpenMMLab know the layers, backbones, hooks and configs of mmkw.

Importing mmkw does it: layers, backbones and hooks come into MMEngine's root registries, a safe
checkpoint loader takes the place of MMEngine's, and configs are known as bases (``mmkw::...``) and
as models by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn.bricks import Conv2dAdaptivePadding, build_norm_layer, wrappers
from mmengine.registry import FUNCTIONS, MODELS
from torch import nn

from ..methods.kernel_warehouse import KWLayer
from ..methods.kernel_warehouse.attention import AttentionConfig
from ..methods.registry import Method, for_each_method
from ..networks.replacing import PLAIN_LAYERS, PlainLayer, pad_to_ceil
from . import optim_constructor  # noqa: F401
from .scope import register_classifiers, register_scope
from .sharding import keep_warehouses_whole

# Norms of maps, and what computes the same for vectors.
_NORMS_OF_VECTORS = {'BN': 'BN1d', 'BN2d': 'BN1d', 'BN3d': 'BN1d', 'LN2d': 'LN'}


def norm_from_config(norm_cfg: Mapping[str, Any], width: int) -> nn.Module:
    """The norm of a ``norm_cfg`` for vectors of this width, by MMCV's registry.

    Raises:
        ValueError: if its type is not registered or an argument is missing, unknown or wrong.
    """
    kind = norm_cfg['type']
    name = kind.rpartition('.')[2] if isinstance(kind, str) else kind
    try:
        _, norm = build_norm_layer({**norm_cfg, 'type': _NORMS_OF_VECTORS.get(name, kind)}, width)
    except KeyError as error:
        raise ValueError(f'no norm {kind!r} is registered') from error
    except AssertionError as error:
        raise ValueError(str(error) or 'num_groups is missing') from error
    return norm


def register_layers(method: type[Method]) -> None:
    """Register the layers of a method, so that ``conv_cfg=dict(type=...)`` finds them."""
    for layer in method.layers.values():
        MODELS.register_module(module=layer)


def register() -> None:
    """Register what does not register itself when its module is imported. Call it once."""
    for_each_method(register_layers)
    FUNCTIONS.register_module(module=keep_warehouses_whole)
    AttentionConfig.norm_from_config = staticmethod(norm_from_config)
    KWLayer.cure_of_plain_checkpoint = (
        'choose a budget of at least 1, load a checkpoint of a KW model, or remove init_cfg or '
        'load_from to train from scratch'
    )
    KWLayer.way_to_anneal = (
        "anneal the temperature with custom_hooks=[dict(type='KWStartHook', epochs=...)] in the "
        'config, or call mmkw.set_temperature before each iteration'
    )
    # MMCV's subclasses differ from PyTorch's layers for empty batches only, which dynamic layers
    # take; EfficientNets use the one that pads by itself.
    PLAIN_LAYERS.update(
        {
            wrappers.Linear: PlainLayer(0),
            wrappers.Conv2d: PlainLayer(2),
            wrappers.Conv3d: PlainLayer(3),
            Conv2dAdaptivePadding: PlainLayer(2, pad_to_ceil),
        }
    )
    register_scope()
    register_classifiers()
