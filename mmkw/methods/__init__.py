"""Dynamic convolutions in plain PyTorch: one public base, one file a method."""

from .base import DynamicConvNd, DynamicLayer, DynamicLinear
from .cgc import CGConv2d
from .cond_conv import CondConv2d, CondLinear, share_routing
from .dcd import DCDConv2d, DCDLinear
from .dy_conv import DYConv2d
from .kernel_warehouse import KWConv1d, KWConv2d, KWConv3d, KWLayer, KWLinear
from .od_conv import ODConv2d
from .temperature import (
    AnnealedModule,
    TemperatureRange,
    annealed_modules,
    get_temperature,
    set_temperature,
    temperature_range,
)
from .weight_net import WeightNetConv2d

__all__ = [
    'AnnealedModule',
    'CGConv2d',
    'CondConv2d',
    'CondLinear',
    'DCDConv2d',
    'DCDLinear',
    'DYConv2d',
    'DynamicConvNd',
    'DynamicLayer',
    'DynamicLinear',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLayer',
    'KWLinear',
    'ODConv2d',
    'TemperatureRange',
    'WeightNetConv2d',
    'annealed_modules',
    'get_temperature',
    'set_temperature',
    'share_routing',
    'temperature_range',
]
