"""KernelWarehouse, and the dynamic convolutions it is compared with, for OpenMMLab.

Where OpenMMLab is installed, importing mmkw registers all of it there, see :mod:`mmkw.openmmlab`,
so that configs need nothing but ``custom_imports=dict(imports=['mmkw'])``. Without it layers and
:func:`convert` work with PyTorch alone.
"""

from importlib.util import find_spec

from .methods import (
    CGC,
    DCD,
    CGConv2d,
    CondConv,
    CondConv2d,
    DCDConv2d,
    DYConv,
    DYConv2d,
    FDConv,
    FDConv2d,
    KernelWarehouse,
    KWConv1d,
    KWConv2d,
    KWConv3d,
    KWLinear,
    ODConv,
    ODConv2d,
    WeightNet,
    WeightNetConv2d,
    get_temperature,
    set_temperature,
)
from .methods.kernel_warehouse import fold_attentions, unfold_attentions
from .networks.convert import convert, plan

__version__ = '0.1.0'

__all__ = [
    'CGC',
    'CGConv2d',
    'CondConv',
    'CondConv2d',
    'DCD',
    'DCDConv2d',
    'DYConv',
    'DYConv2d',
    'FDConv',
    'FDConv2d',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
    'KernelWarehouse',
    'ODConv',
    'ODConv2d',
    'WeightNet',
    'WeightNetConv2d',
    'convert',
    'fold_attentions',
    'get_temperature',
    'plan',
    'set_temperature',
    'unfold_attentions',
]

# An installation that is not complete shall show its error, so nothing is caught here.
if find_spec('mmengine') is not None:
    from . import checkpoints, openmmlab

    openmmlab.register()
    __all__ += ['checkpoints', 'openmmlab']
