"""The tables of the paper, with the parameters of the models built here beside those printed."""

from .counting import count_parameters
from .rendering import render
from .tables import NOTES, TABLES

__all__ = ['NOTES', 'TABLES', 'count_parameters', 'render']
