"""The tables of the paper, with what the models built here have beside what is printed."""

from .models import BuiltModels
from .rendering import TABLES, render
from .tables import PARAMETER_TABLES

__all__ = ['PARAMETER_TABLES', 'TABLES', 'BuiltModels', 'render']
