"""Networks side by side: time, memory and operations, relative to the plain network.

Plots need matplotlib, so the report is imported by itself: ``benchmarking.report``.
"""

from .candidates import Candidate, group_by_twin, plain_twin
from .host import measure_host, measure_layer
from .layer_sweep import measure_sweep
from .measuring import MODES, measure_group
from .networks import Network, build_group
from .setting import DTYPES, Setting, describe_machine

__all__ = [
    'DTYPES',
    'MODES',
    'Candidate',
    'Network',
    'Setting',
    'build_group',
    'describe_machine',
    'group_by_twin',
    'measure_group',
    'measure_host',
    'measure_layer',
    'measure_sweep',
    'plain_twin',
]
