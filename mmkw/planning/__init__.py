"""Planning by itself: which layers of any network share which warehouse."""

from .automatic import complete_plan, make_plan, plan_network, warehouse_network
from .plan_table import NetworkPlan
from .tracing import LayerTrace, trace_layers

__all__ = [
    'LayerTrace',
    'NetworkPlan',
    'complete_plan',
    'make_plan',
    'plan_network',
    'trace_layers',
    'warehouse_network',
]
