"""Convolving each sample with its own kernel, in plain PyTorch: the base of all methods."""

from .layer import DynamicConvNd, DynamicLayer, DynamicLinear
from .mixing import KernelLayout, Mixture, assemble_kernels
from .replacing import PLAIN_LAYERS, PlainLayer, match_layers, replace_layers
from .routes import ROUTES, dynamic_conv, forced_route
from .temperature import (
    AnnealedModule,
    TemperatureRange,
    annealed_modules,
    get_temperature,
    set_temperature,
    temperature_range,
)

__all__ = [
    'PLAIN_LAYERS',
    'ROUTES',
    'AnnealedModule',
    'DynamicConvNd',
    'DynamicLayer',
    'DynamicLinear',
    'KernelLayout',
    'Mixture',
    'PlainLayer',
    'TemperatureRange',
    'annealed_modules',
    'assemble_kernels',
    'dynamic_conv',
    'forced_route',
    'get_temperature',
    'match_layers',
    'replace_layers',
    'set_temperature',
    'temperature_range',
]
