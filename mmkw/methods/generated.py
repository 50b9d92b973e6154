"""Convolutions that compute each sample's whole kernel, rather than mix it from a few."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.routes import kernel_conv
from .base import DynamicConvNd


class GeneratedConv2d(DynamicConvNd):
    """Two-dimensional convolution whose kernels :meth:`generate` computes from the input.

    The kernels of all samples of the batch are kept for the backward pass.

    Attributes:
        weight: parameter, what the kernels are computed from.
    """

    plain_type = nn.Conv2d
    weight: nn.Parameter

    def generate(self, pooled: Tensor) -> Tensor:
        """The kernels for what :meth:`pool` gives, ``(N, *kernel_shape)``."""
        raise NotImplementedError

    def sample_kernels(self, pooled: Tensor) -> Tensor:
        return self.generate(pooled)

    def convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        return kernel_conv(x, self.generate(pooled), self.bias, **geometry)

    @torch.no_grad()
    def reset_own(self) -> None:
        """Initialise the weight, Kaiming normal over the kernel's fan_out, and the bias, 0."""
        fan_out = self.kernel_shape[0] // self.groups * math.prod(self.kernel_size)
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialise weight, bias and attention anew."""
        self.reset_own()
        self.attention.reset_parameters()

    def init_weights(self) -> None:
        """Initialise all parameters anew; OpenMMLab's modules call it instead of their own way."""
        self.reset_parameters()

    @property
    def mixing_operations(self) -> int:
        """One multiply-add for each element of the kernel."""
        return self.weight.numel()
