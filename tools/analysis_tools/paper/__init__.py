"""The tables of the paper, with what the models built here have beside what is printed."""

from .models import BuiltModels
from .rendering import TABLES, render
from .tables import MEMORY, PARAMETER_TABLES, SPEED, printed

__all__ = ['MEMORY', 'PARAMETER_TABLES', 'SPEED', 'TABLES', 'BuiltModels', 'printed', 'render']
