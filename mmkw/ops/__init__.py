"""Convolving each sample with its own kernel: plain functions of PyTorch, no modules."""

from .attention import fused_attention, mixture_attention
from .convolution import kept_kernels
from .mixing import KernelLayout, Mixture, assemble_kernels
from .routes import ROUTES, dynamic_conv, forced_route

__all__ = [
    'ROUTES',
    'KernelLayout',
    'Mixture',
    'assemble_kernels',
    'dynamic_conv',
    'forced_route',
    'fused_attention',
    'kept_kernels',
    'mixture_attention',
]
