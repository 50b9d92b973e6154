"""KernelWarehouse for OpenMMLab.

Importing it registers the layers, backbones and hooks in MMEngine's root registries and a safe
checkpoint loader, so that configs need nothing but ``custom_imports=dict(imports=['mmkw'])``.
"""

from mmcv.cnn.bricks import wrappers
from mmengine.registry import MODELS

from . import backbones, checkpoints, heads, hooks
from .kernel_warehouse import (
    KWConv1d,
    KWConv2d,
    KWConv3d,
    KWLinear,
    WarehouseConfig,
    apply_plan,
    fold_attentions,
    get_temperature,
    plan_network,
    set_temperature,
    unfold_attentions,
    warehouse_network,
)
from .kernel_warehouse.plan import KW_LAYERS

__version__ = '0.1.0'

# The layers themselves know nothing of OpenMMLab.
for _layer in (KWConv1d, KWConv2d, KWConv3d, KWLinear):
    MODELS.register_module(module=_layer)

# MMCV's subclasses differ from PyTorch's layers for empty batches only, which KW layers take.
KW_LAYERS.update({wrappers.Conv2d: KWConv2d, wrappers.Conv3d: KWConv3d, wrappers.Linear: KWLinear})

__all__ = [
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
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
