"""The attentions of FDConv: gates of a kernel's elements, and weights of its coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import AttentionLinear, autocast_off, normalise_hidden

# The standard deviation of weights with which gates start at 1.
SMALL = 1e-6
_MIN_HIDDEN = 16


def gate(logits: Tensor, activation: str, max_gate: float) -> Tensor:
    """``max_gate * sigmoid(z)``, or ``1 + tanh(z)``."""
    return 1 + logits.tanh() if activation == 'tanh' else max_gate * logits.sigmoid()


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless an activation is one of the choices."""
    if value not in choices:
        only = ' (softmax needs only_kernel_attention)' if name == 'activation' else ''
        raise ValueError(f'{name} must be one of {", ".join(choices)}{only}, but got {value!r}')


class PointwiseLinear(AttentionLinear):
    """A linear layer whose weight has the shape of a 1 x 1 convolution."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = nn.Parameter(self.weight.detach()[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        with autocast_off(x):
            return F.linear(x.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class StarReLU(nn.Module):
    """``s relu(z) ** 2 + t`` with learned numbers ``s`` and ``t``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.relu().square() + self.bias


class Gates(NamedTuple):
    """What the global attention computes: gates, and the weights of the sets of coefficients.

    Attributes:
        channel, filter: of input and output channels, ``(N, C_in)`` and ``(N, C_out)``; ``None``
            without gates.
        spatial: of the kernel's positions, ``(N, k * k)``; ``None`` where there is one.
        kernel: ``pi``, shape ``(N, n P)``.
    """

    channel: Tensor | None
    filter: Tensor | None
    spatial: Tensor | None
    kernel: Tensor


class GlobalAttention(nn.Module):
    r"""Gates and weights of sets from a hidden vector.

    ==============  =======================  =======================================
    activation      gates                    weights of sets, with ``w`` of them
    ==============  =======================  =======================================
    ``'sigmoid'``   :math:`c\,\sigma(z/T)`   :math:`2 \sigma(z/T_k) / w`
    ``'tanh'``      :math:`1 + \tanh(z/T)`   :math:`(1 + \tanh(z/T_k)) / w`
    ``'softmax'``   none                     :math:`\mathrm{softmax}(z/T_k)`
    ==============  =======================  =======================================

    Args:
        in_channels, out_channels, positions: of the convolution.
        num_weights: ``w``.
        reduction: hidden width relative to ``in_channels``; the width is at least 16.
        activation: see the table.
        max_gate: ``c``.
        temperatures: ``T`` and ``T_k``.
        has_gates: whether there are gates besides the weights.
        starts_at_one: whether the filter gates start at 1, as the others do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        positions: int,
        num_weights: int,
        reduction: float,
        activation: str,
        max_gate: float,
        temperatures: tuple[float, float],
        has_gates: bool,
        starts_at_one: bool,
    ) -> None:
        super().__init__()
        self.activation, self.max_gate, self.temperatures = activation, max_gate, temperatures
        self.starts_at_one = starts_at_one
        hidden = max(int(in_channels * reduction), _MIN_HIDDEN)

        def head(width: int, exists: bool = has_gates) -> PointwiseLinear | None:
            return PointwiseLinear(hidden, width) if exists else None

        self.fc = PointwiseLinear(in_channels, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.relu = StarReLU()
        self.channel_fc = head(in_channels)
        self.filter_fc = head(out_channels)
        self.spatial_fc = head(positions, has_gates and positions > 1)
        self.kernel_fc = PointwiseLinear(hidden, num_weights)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start with gates of 1. The filter head stays random, as in the authors' code."""
        for child in self.children():
            child.reset_parameters()
        small = [self.channel_fc, self.spatial_fc, self.kernel_fc]
        for head in [*small, *([self.filter_fc] if self.starts_at_one else [])]:
            if head is not None:
                nn.init.normal_(head.weight, std=SMALL)

    def forward(self, pooled: Tensor) -> Gates:
        """Gates for the pooled input, shape ``(N, C_in)``."""
        hidden = self.relu(normalise_hidden(self.bn, self.fc(pooled)))
        temperature, kernel_temperature = self.temperatures

        def gates(head: PointwiseLinear | None) -> Tensor | None:
            if head is None:
                return None
            return gate(head(hidden) / temperature, self.activation, self.max_gate)

        kernel = self.kernel_fc(hidden) / kernel_temperature
        if self.activation == 'softmax':
            kernel = kernel.softmax(1)
        else:
            kernel = gate(kernel, self.activation, 2) / kernel.shape[1]
        return Gates(gates(self.channel_fc), gates(self.filter_fc), gates(self.spatial_fc), kernel)


class ChannelConv(nn.Module):
    """Convolution along the channels, from one map to many, without bias."""

    def __init__(self, maps: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, padding=self.weight.shape[2] // 2)


class LocalAttention(nn.Module):
    """Logits of a gate for each element of the kernel, from each channel and its neighbours.

    Args:
        in_channels, maps: input channels, and kernel elements for each of them.
    """

    def __init__(self, in_channels: int, maps: int) -> None:
        super().__init__()
        self.conv = ChannelConv(maps, round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1)
        self.norm = nn.LayerNorm(in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.conv.weight, SMALL)
        self.norm.reset_parameters()

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C_in)`` to ``(N, maps, C_in)``."""
        with autocast_off(pooled):
            pooled = pooled.to(self.conv.weight.dtype)
            return self.conv(self.norm(pooled).unsqueeze(1))
