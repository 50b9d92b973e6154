"""KernelWarehouse (Li and Yao, ICML 2024) in plain PyTorch."""

from .attention import AttentionConfig, KernelAttention
from .folding import fold_attentions, unfold_attentions
from .layers import KWConv1d, KWConv2d, KWConv3d, KWLayer, KWLinear, Warehouse
from .method import KernelWarehouse
from .partition import KernelPartition, WarehousePartition, partition_kernels

__all__ = [
    'AttentionConfig',
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLayer',
    'KWLinear',
    'KernelAttention',
    'KernelPartition',
    'KernelWarehouse',
    'Warehouse',
    'WarehousePartition',
    'fold_attentions',
    'partition_kernels',
    'unfold_attentions',
]
