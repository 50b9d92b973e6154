"""Dynamic convolutions in plain PyTorch: one public base, one file a method."""

from .base import DynamicConvNd, DynamicLayer, DynamicLinear
from .cgc import CGC, CGConv2d
from .cond_conv import CondConv, CondConv2d, CondLinear, share_routing
from .dcd import DCD, DCDConv2d, DCDLinear
from .dy_conv import DYConv, DYConv2d
from .fd_conv import FDConv, FDConv2d
from .kernel_warehouse import KernelWarehouse, KWConv1d, KWConv2d, KWConv3d, KWLayer, KWLinear
from .od_conv import ODConv, ODConv2d
from .registry import METHODS, Method, method_of_layer, register_method
from .temperature import (
    AnnealedModule,
    TemperatureRange,
    annealed_modules,
    get_temperature,
    set_temperature,
    temperature_range,
)
from .weight_net import WeightNet, WeightNetConv2d

__all__ = [
    'CGC',
    'DCD',
    'METHODS',
    'AnnealedModule',
    'CGConv2d',
    'CondConv',
    'CondConv2d',
    'CondLinear',
    'DCDConv2d',
    'DCDLinear',
    'DYConv',
    'DYConv2d',
    'DynamicConvNd',
    'DynamicLayer',
    'DynamicLinear',
    'FDConv',
    'FDConv2d',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLayer',
    'KWLinear',
    'KernelWarehouse',
    'Method',
    'ODConv',
    'ODConv2d',
    'TemperatureRange',
    'WeightNet',
    'WeightNetConv2d',
    'annealed_modules',
    'get_temperature',
    'method_of_layer',
    'register_method',
    'set_temperature',
    'share_routing',
    'temperature_range',
]
