"""What networks cost, KW networks and plain ones alike: operations, launches, memory and time."""

from .launches import count_launches
from .memory import kept_memory, peak_memory, tensor_bytes
from .operations import Operations, count_operations
from .timing import Rates, Spread, measure_rates, time_alternately

__all__ = [
    'Operations',
    'Rates',
    'Spread',
    'count_launches',
    'count_operations',
    'kept_memory',
    'measure_rates',
    'peak_memory',
    'tensor_bytes',
    'time_alternately',
]
