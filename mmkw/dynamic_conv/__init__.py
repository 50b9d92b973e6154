"""The dynamic convolutions that KernelWarehouse is compared with, in plain PyTorch."""

from .cgc import CGConv2d
from .cond_conv import CondConv2d, CondLinear, share_routing
from .dcd import DCDConv2d, DCDLinear
from .dy_conv import DYConv2d
from .od_conv import ODConv2d
from .weight_net import WeightNetConv2d

__all__ = [
    'CGConv2d',
    'CondConv2d',
    'CondLinear',
    'DCDConv2d',
    'DCDLinear',
    'DYConv2d',
    'ODConv2d',
    'WeightNetConv2d',
    'share_routing',
]
