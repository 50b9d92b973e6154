"""One fair comparison of the methods: the same data, recipe, iterations and seeds for all."""

from .methods import METHODS
from .recipe import QUICK, Recipe
from .report import write_report
from .runs import compare

__all__ = ['METHODS', 'QUICK', 'Recipe', 'compare', 'write_report']
