"""KernelWarehouse (Li and Yao, ICML 2024) in plain PyTorch."""

from .layers import KWConv1d, KWConv2d, KWConv3d, KWLinear
from .partition import KernelPartition, WarehousePartition, partition_kernels
from .plan import WarehouseConfig, apply_plan, partition_network
from .warehouse import Warehouse, get_temperature, set_temperature

__all__ = [
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
    'KernelPartition',
    'Warehouse',
    'WarehouseConfig',
    'WarehousePartition',
    'apply_plan',
    'get_temperature',
    'partition_kernels',
    'partition_network',
    'set_temperature',
]
