"""KernelWarehouse (Li and Yao, ICML 2024) in plain PyTorch."""

from .attention import AttentionConfig, KernelAttention, mixture_attention
from .folding import fold_attentions, unfold_attentions
from .layers import KWConv1d, KWConv2d, KWConv3d, KWLayer, KWLinear
from .partition import KernelPartition, WarehousePartition, partition_kernels
from .plan import WarehouseConfig, apply_plan, freeze_idle_warehouses, partition_network
from .warehouse import Warehouse

__all__ = [
    'AttentionConfig',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLayer',
    'KWLinear',
    'KernelAttention',
    'KernelPartition',
    'Warehouse',
    'WarehouseConfig',
    'WarehousePartition',
    'apply_plan',
    'fold_attentions',
    'freeze_idle_warehouses',
    'mixture_attention',
    'partition_kernels',
    'partition_network',
    'unfold_attentions',
]
