"""Frequency dynamic convolution (Chen et al., CVPR 2025) in plain PyTorch."""

from .bands import BandModulation
from .layer import FDConv, FDConv2d
from .spectrum import (
    band_masks,
    frequency_groups,
    frequency_order,
    kernel_spectrum,
    spectrum_kernels,
)

__all__ = [
    'BandModulation',
    'FDConv',
    'FDConv2d',
    'band_masks',
    'frequency_groups',
    'frequency_order',
    'kernel_spectrum',
    'spectrum_kernels',
]
