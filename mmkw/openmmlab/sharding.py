"""Fully sharded training (FSDP) of networks with warehouses."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from ..methods.base import DynamicLayer
from ..methods.kernel_warehouse.layers import Warehouse
from ..networks.plan import Warehouses


def keep_warehouses_whole(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, min_num_params: int = int(1e8)
) -> bool:
    """Wrap policy of FSDP: by size, but never a warehouse alone, nor a part of a dynamic layer.

    FSDP gathers the parameters of a unit while the unit is called, but layers go on with the cells
    of a warehouse after its call. So warehouses stay in the unit of the network that holds them,
    which is gathered for the whole of its forward and backward pass.

    Args:
        module, recurse, nonwrapped_numel: as FSDP passes them to a policy.
        min_num_params: the smallest number of parameters of a unit. Defaults to 1e8.

    Returns:
        Whether to look into ``module`` (``recurse``), or to make it a unit.
    """
    if isinstance(module, (Warehouse, Warehouses)) or (
        recurse and isinstance(module, DynamicLayer)
    ):
        return False
    return size_based_auto_wrap_policy(
        module, recurse, nonwrapped_numel, min_num_params=min_num_params
    )
