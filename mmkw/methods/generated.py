"""Convolutions that compute each sample's whole kernel, rather than mix it from a few."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..ops.convolution import convolve
from ..ops.routes import add_bias, takes_matrices
from ..ops.unfolded import convolve_matrices, kernel_matrices
from .base import DynamicConvNd


class GeneratedConv2d(DynamicConvNd):
    """Two-dimensional convolution whose kernels :meth:`generate` computes from the input.

    The kernels of all samples of the batch are kept for the backward pass.

    Attributes:
        weight: parameter, what the kernels are computed from.
    """

    plain_type = nn.Conv2d
    weight: nn.Parameter

    def generate(self, x: Tensor) -> Tensor:
        """The kernels for ``(N, in_channels, *size)``, ``(N, *kernel_shape)``."""
        raise NotImplementedError

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels for ``x``, ``(N, out_channels, in_channels / groups, *kernel_size)``."""
        self.check_input(x)
        return self.generate(x)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, in_channels, *size)`` to ``(N, out_channels, *out_size)``."""
        if isinstance(x, Proxy):
            return self.record_call(x)
        kernels = self.kernels(x)
        geometry = (self.groups, self.stride, self.conv_padding, self.dilation)
        if takes_matrices():
            matrices = kernel_matrices(kernels, self.groups)
            y = convolve_matrices(self.pad(x), matrices, self.kernel_size, *geometry[1:])
            return add_bias(y, self.bias)
        if x.shape[0] > 0:
            return add_bias(convolve(self.pad(x), kernels, *geometry), self.bias)
        # RoI heads see empty batches. One kernel of zeros keeps the shapes and the graph.
        kernel = kernels.sum(0)
        y = nn.functional.conv2d(
            self.pad(x), kernel, None, self.stride, self.conv_padding, self.dilation, self.groups
        )
        return add_bias(y, self.bias)

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
