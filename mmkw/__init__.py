"""KernelWarehouse, and the dynamic convolutions it is compared with, for OpenMMLab.

Where OpenMMLab is installed, importing mmkw registers all of it there, see :mod:`mmkw.openmmlab`,
so that configs need nothing but ``custom_imports=dict(imports=['mmkw'])``. Without it the layers,
plans and warehouses work with PyTorch alone.
"""

from importlib.util import find_spec

from .dynamic_conv import CGConv2d, CondConv2d, DCDConv2d, DYConv2d, ODConv2d, WeightNetConv2d
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
from .sample_conv import get_temperature, set_temperature

__version__ = '0.1.0'

__all__ = [
    'CGConv2d',
    'CondConv2d',
    'DCDConv2d',
    'DYConv2d',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
    'ODConv2d',
    'WarehouseConfig',
    'WeightNetConv2d',
    'apply_plan',
    'fold_attentions',
    'get_temperature',
    'plan_network',
    'set_temperature',
    'unfold_attentions',
    'warehouse_network',
]

# An installation that is not complete shall show its error, so nothing is caught here.
if find_spec('mmengine') is not None:
    from . import backbones, checkpoints, heads, hooks
    from .openmmlab import register

    register()
    __all__ += ['backbones', 'checkpoints', 'heads', 'hooks']
