"""Making OpenMMLab know the layers, backbones, hooks and configs of mmkw.

Importing mmkw does it: layers, backbones and hooks come into MMEngine's root registries, a safe
checkpoint loader takes the place of MMEngine's, and configs are known as bases (``mmkw::...``) and
as models by name.
"""

from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from mmengine.registry import FUNCTIONS, MODELS

from . import optim_constructor  # noqa: F401
from .dynamic_conv import CGConv2d, CondConv2d, DCDConv2d, DYConv2d, ODConv2d, WeightNetConv2d
from .kernel_warehouse import KWConv1d, KWConv2d, KWConv3d, KWLayer, KWLinear
from .kernel_warehouse.sharding import keep_warehouses_whole
from .registry import register_classifiers, register_scope
from .sample_conv.replacing import PLAIN_LAYERS, PlainLayer, pad_to_ceil


def register() -> None:
    """Register what does not register itself when its module is imported. Call it once."""
    # The layers themselves know nothing of OpenMMLab.
    for layer in (
        KWConv1d, KWConv2d, KWConv3d, KWLinear, ODConv2d, DYConv2d, CondConv2d, DCDConv2d,
        CGConv2d, WeightNetConv2d,
    ):  # fmt: skip
        MODELS.register_module(module=layer)
    FUNCTIONS.register_module(module=keep_warehouses_whole)
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
