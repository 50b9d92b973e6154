"""Making OpenMMLab know the layers, backbones, hooks and configs of mmkw.

Importing mmkw does it: layers, backbones and hooks come into MMEngine's root registries, a safe
checkpoint loader takes the place of MMEngine's, and configs are known as bases (``mmkw::...``) and
as models by name.
"""

from __future__ import annotations

from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from mmengine.registry import FUNCTIONS, MODELS

from ..methods.registry import Method, for_each_method
from ..networks.replacing import pad_to_ceil, register_plain_layer
from . import optim_constructor  # noqa: F401
from .attention_norms import layer_for_configs
from .scope import register_classifiers, register_scope
from .sharding import keep_warehouses_whole


def register_layers(method: type[Method]) -> None:
    """Register the layers of a method, so that ``conv_cfg=dict(type=...)`` finds them."""
    for layer in method.layers.values():
        MODELS.register_module(module=layer_for_configs(layer))


def register() -> None:
    """Register what does not register itself when its module is imported. Call it once."""
    for_each_method(register_layers)
    FUNCTIONS.register_module(module=keep_warehouses_whole)
    # MMCV's subclasses differ from PyTorch's layers for empty batches only, which dynamic layers
    # take; EfficientNets use the one that pads by itself.
    register_plain_layer(wrappers.Linear, 0)
    register_plain_layer(wrappers.Conv2d, 2)
    register_plain_layer(wrappers.Conv3d, 3)
    register_plain_layer(Conv2dAdaptivePadding, 2, pad_to_ceil)
    register_scope()
    register_classifiers()
