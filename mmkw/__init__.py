"""KernelWarehouse, and the dynamic convolutions it is compared with, for OpenMMLab.

Where OpenMMLab is installed, importing mmkw registers all of it there, see :mod:`mmkw.openmmlab`,
so that configs need nothing but ``custom_imports=dict(imports=['mmkw'])``. Without it the layers,
plans and warehouses work with PyTorch alone.
"""

from importlib.util import find_spec

from .methods import (
    CGConv2d,
    CondConv2d,
    DCDConv2d,
    DYConv2d,
    KWConv1d,
    KWConv2d,
    KWConv3d,
    KWLinear,
    ODConv2d,
    WeightNetConv2d,
    get_temperature,
    set_temperature,
)
from .methods.kernel_warehouse import fold_attentions, unfold_attentions
from .networks import WarehouseConfig, apply_plan, plan_network, warehouse_network

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
    from . import checkpoints, openmmlab

    openmmlab.register()
    __all__ += ['checkpoints', 'openmmlab']
