"""KernelWarehouse, and the dynamic convolutions it is compared with, for OpenMMLab.

Importing it registers the layers, backbones and hooks in MMEngine's root registries and a safe
checkpoint loader, so that configs need nothing but ``custom_imports=dict(imports=['mmkw'])``. It
also makes the configs known, as bases (``mmkw::...``) and as models by name.
"""

from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from mmengine.registry import MODELS

from . import backbones, checkpoints, heads, hooks
from .dynamic_conv import CondConv2d, DCDConv2d, DYConv2d, ODConv2d
from .kernel_warehouse import (
    KWConv1d,
    KWConv2d,
    KWConv3d,
    KWLinear,
    WarehouseConfig,
    apply_plan,
    fold_attentions,
    unfold_attentions,
)
from .planning import plan_network, warehouse_network
from .registry import register_classifiers, register_scope
from .sample_conv import get_temperature, set_temperature
from .sample_conv.replacing import PLAIN_LAYERS, PlainLayer, pad_to_ceil

__version__ = '0.1.0'

# The layers themselves know nothing of OpenMMLab.
for _layer in (
    KWConv1d, KWConv2d, KWConv3d, KWLinear, ODConv2d, DYConv2d, CondConv2d, DCDConv2d
):  # fmt: skip
    MODELS.register_module(module=_layer)

# MMCV's subclasses differ from PyTorch's layers for empty batches only, which dynamic layers take;
# EfficientNets use the one that pads by itself.
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

__all__ = [
    'CondConv2d',
    'DCDConv2d',
    'DYConv2d',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
    'ODConv2d',
    'WarehouseConfig',
    'apply_plan',
    'backbones',
    'checkpoints',
    'fold_attentions',
    'get_temperature',
    'heads',
    'hooks',
    'plan_network',
    'set_temperature',
    'unfold_attentions',
    'warehouse_network',
]
