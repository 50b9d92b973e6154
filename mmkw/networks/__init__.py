"""Converting networks: finding their layers, planning warehouses, putting dynamic layers in."""

from .automatic import complete_plan, make_plan, plan_network
from .plan import WarehouseConfig, apply_plan, freeze_idle_warehouses, partition_network
from .plan_table import NetworkPlan
from .replacing import match_layers, register_plain_layer, replace_layers
from .tracing import LayerTrace, trace_layers

__all__ = [
    'LayerTrace',
    'NetworkPlan',
    'WarehouseConfig',
    'apply_plan',
    'complete_plan',
    'freeze_idle_warehouses',
    'make_plan',
    'match_layers',
    'partition_network',
    'plan_network',
    'register_plain_layer',
    'replace_layers',
    'trace_layers',
]
