r"""Omni-dimensional dynamic convolution (Li, Zhou and Yao, ICLR 2022).

.. math::
    y = \alpha_f \odot \Big(\sum_{k=1}^K \alpha_{wk} \, \alpha_s \odot \mathbf{W}_k\Big)
        * (\alpha_c \odot x)

with four attentions of the pooled input: :math:`\alpha_c` over input channels, :math:`\alpha_f`
over output channels (filters), :math:`\alpha_s` over the kernel's positions and
:math:`\alpha_w` over the kernels. As in the released models, all kernels share the first three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_positive, checks_arguments
from ..ops.mixing import Mixture, scale_maps
from ..ops.routes import add_bias
from .base import AttentionLinear, IntOrTuple, normalise_hidden
from .kernel_bank import SOFTMAX_TEMPERATURE, KernelBankConv2d, kernel_attention, temperature_of
from .registry import Method, register_method
from .temperature import AnnealedModule

_MIN_HIDDEN = 16


class ODFactors(NamedTuple):
    """Attentions of a batch; ``None`` where the layer has no such attention, meaning 1.

    Attributes:
        channel: shape ``(N, in_channels)``.
        filter: shape ``(N, out_channels)``.
        spatial: shape ``(N, positions)``.
        kernel: shape ``(N, K)``.
    """

    channel: Tensor
    filter: Tensor | None
    spatial: Tensor | None
    kernel: Tensor | None


class ODAttention(AnnealedModule):
    r"""The four attentions of one layer.

    Linear layer without bias to ``h = max(int(in_channels * reduction), 16)``, batch norm, ReLU,
    and a linear layer with bias for each attention. With :math:`T` the temperature they are
    :math:`\sigma(z / T)` for channels, filters and positions, and
    :math:`\mathrm{softmax}(z / T)` for kernels.

    Args:
        in_channels: over all groups.
        out_channels: output channels; ``None`` for no filter attention.
        positions: spatial positions of the kernel; 1 for no spatial attention.
        num_kernels: ``K``; 1 for no kernel attention.
        reduction: hidden width relative to ``in_channels``.
        function: of the kernel attention, see
            :func:`~mmkw.methods.kernel_bank.kernel_attention`. With ``'caf'``, whose
            temperature is another, the sigmoids have :math:`T = 1`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        positions: int,
        num_kernels: int,
        reduction: float = 1 / 16,
        function: str = 'softmax',
    ) -> None:
        self.temperature_range = temperature_of(function)
        super().__init__()
        self.function = function
        hidden = max(int(in_channels * reduction), _MIN_HIDDEN)
        self.fc = AttentionLinear(in_channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.channel_fc = AttentionLinear(hidden, in_channels)
        self.filter_fc = AttentionLinear(hidden, out_channels) if out_channels else None
        self.spatial_fc = AttentionLinear(hidden, positions) if positions > 1 else None
        self.kernel_fc = AttentionLinear(hidden, num_kernels) if num_kernels > 1 else None

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for child in self.children():
            if hasattr(child, 'reset_parameters'):
                child.reset_parameters()

    def forward(self, pooled: Tensor) -> ODFactors:
        """Attentions for the pooled input, shape ``(N, in_channels)``."""
        hidden = self.relu(normalise_hidden(self.norm, self.fc(pooled)))

        def sigmoid(head: AttentionLinear | None) -> Tensor | None:
            if head is None:
                return None
            logits = head(hidden)
            return (logits / self.temperature if self.function == 'softmax' else logits).sigmoid()

        kernel = None
        if self.kernel_fc is not None:
            kernel = kernel_attention(self.kernel_fc(hidden), self.temperature, self.function)
        return ODFactors(
            sigmoid(self.channel_fc), sigmoid(self.filter_fc), sigmoid(self.spatial_fc), kernel
        )


class ODConv2d(KernelBankConv2d):
    """Omni-dimensional dynamic convolution.

    The channel attention scales the input and the filter attention the output, so that kernels
    are mixed over ``K`` and scaled by position only, in the routes that all dynamic layers share.

    There is no filter attention where the convolution is depthwise, no spatial attention where
    the kernel has one position, and no kernel attention with one kernel.

    Args:
        in_channels, ..., dtype: all arguments as in ``nn.Conv2d``; the bias is static.
        num_kernels: ``K``. Defaults to 4 (the paper's 4x).
        reduction: hidden width of the attention relative to ``in_channels``; the width is at
            least 16. Defaults to 1/16.
        function: of the kernel attention: ``'softmax'``, or ``'caf'`` for that of KernelWarehouse,
            with its temperature (Table 10). Defaults to ``'softmax'``.

    Raises:
        ValueError: at construction if ``num_kernels`` or ``reduction`` is not positive or
            ``function`` is unknown.
    """

    @checks_arguments()
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        num_kernels: int = 4,
        reduction: float = 1 / 16,
        function: str = 'softmax',
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        check_positive('reduction', reduction)
        self.add_kernels(num_kernels, device, dtype)
        is_depthwise = in_channels == groups == out_channels
        self.attention = ODAttention(
            in_channels,
            None if is_depthwise else out_channels,
            math.prod(self.kernel_size),
            num_kernels,
            reduction,
            function,
        ).to(device, dtype)

    def mix(self, pooled: Tensor) -> Mixture:
        factors = self.attention(pooled)
        kernel = factors.kernel
        if kernel is None:
            kernel = factors.channel.new_ones(len(pooled), 1)
        mixture = self.mix_kernels(kernel, factors.spatial)
        return mixture._replace(input_scale=factors.channel, output_scale=factors.filter)

    def convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        if self.num_kernels > 1 or math.prod(self.kernel_size) > 1:
            return super().convolve(x, pooled, **geometry)
        # The kernel is the same for all samples.
        factors = self.attention(pooled)
        x = scale_maps(x, factors.channel)
        y = scale_maps(F.conv2d(x, self.weight[0].to(x.dtype), **geometry), factors.filter)
        return y if self.bias is None else add_bias(y, self.bias)


@register_method
@dataclass(frozen=True)
class ODConv(Method):
    """ODConv in the places of plain convolutions; the options are those of :class:`ODConv2d`."""

    layers = {2: ODConv2d}
    temperature_range = SOFTMAX_TEMPERATURE

    num_kernels: int = 4
    reduction: float = 1 / 16
    function: str = 'softmax'
