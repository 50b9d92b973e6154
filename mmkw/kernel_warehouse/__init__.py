"""KernelWarehouse (Li and Yao, ICML 2024) in plain PyTorch."""

from .folding import fold_attentions, unfold_attentions
from .layers import KWConv1d, KWConv2d, KWConv3d, KWLinear
from .network_plan import NetworkPlan
from .partition import KernelPartition, WarehousePartition, partition_kernels
from .plan import WarehouseConfig, apply_plan, partition_network
from .planning import complete_plan, plan_network, warehouse_network
from .warehouse import Warehouse, get_temperature, set_temperature

__all__ = [
    'KWConv1d',
    'KWConv2d',
    'KWConv3d',
    'KWLinear',
    'KernelPartition',
    'NetworkPlan',
    'Warehouse',
    'WarehouseConfig',
    'WarehousePartition',
    'apply_plan',
    'complete_plan',
    'fold_attentions',
    'get_temperature',
    'partition_kernels',
    'partition_network',
    'plan_network',
    'set_temperature',
    'unfold_attentions',
    'warehouse_network',
]
