"""Frequency dynamic convolution (Chen et al., CVPR 2025) in plain PyTorch."""

from .layer import FDConv, FDConv2d
from .spectrum import band_masks, frequency_groups, kernel_spectrum, spectrum_kernels

__all__ = [
    'FDConv',
    'FDConv2d',
    'band_masks',
    'frequency_groups',
    'kernel_spectrum',
    'spectrum_kernels',
]
