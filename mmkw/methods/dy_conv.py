r"""Dynamic convolution, DY-Conv (Chen et al., CVPR 2020).

.. math:: y = \Big(\sum_{k=1}^K \alpha_k \mathbf{W}_k\Big) * x, \qquad
    \alpha = \mathrm{softmax}(z / T)

with logits :math:`z` of the pooled input and the temperature :math:`T`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..arguments import check_positive, checks_arguments
from ..ops.mixing import Mixture
from .base import AttentionLinear, IntOrTuple
from .kernel_bank import SOFTMAX_TEMPERATURE, KernelBankConv2d, kernel_attention, temperature_of
from .registry import Method, register_method
from .temperature import AnnealedModule


class DYAttention(AnnealedModule):
    r"""Attentions over the kernels: linear, ReLU, linear, :math:`\mathrm{softmax}(z / T)`.

    Args:
        in_channels: over all groups.
        num_kernels: ``K``.
        reduction: hidden width relative to ``in_channels``; at least one.
        function: see :func:`~mmkw.methods.kernel_bank.kernel_attention`.
    """

    def __init__(
        self,
        in_channels: int,
        num_kernels: int,
        reduction: float = 1 / 4,
        function: str = 'softmax',
    ) -> None:
        self.temperature_range = temperature_of(function)
        super().__init__()
        self.function = function
        hidden = max(int(in_channels * reduction), 1)
        self.fc1 = AttentionLinear(in_channels, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = AttentionLinear(hidden, num_kernels)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def forward(self, pooled: Tensor) -> Tensor:
        """Attentions for the pooled input, ``(N, in_channels)`` to ``(N, K)``."""
        logits = self.fc2(self.relu(self.fc1(pooled)))
        return kernel_attention(logits, self.temperature, self.function)


class DYConv2d(KernelBankConv2d):
    """DY-Conv: each sample's kernel is an average of ``K`` kernels by softmax attentions.

    Args:
        in_channels, ..., dtype: all arguments as in ``nn.Conv2d``; the bias is static.
        num_kernels: ``K``. Defaults to 4.
        reduction: hidden width of the attention relative to ``in_channels``. Defaults to 1/4.
        function: ``'softmax'``, or ``'caf'`` for the attention function of KernelWarehouse, with
            its temperature (Table 10). Defaults to ``'softmax'``.

    Raises:
        ValueError: if ``num_kernels`` or ``reduction`` is not positive, or ``function`` is unknown.
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
        reduction: float = 1 / 4,
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
        self.attention = DYAttention(in_channels, num_kernels, reduction, function)
        self.attention.to(device, dtype)

    def mix(self, pooled: Tensor) -> Mixture:
        return self.mix_kernels(self.attention(pooled))


@register_method
@dataclass(frozen=True)
class DYConv(Method):
    """DY-Conv in the places of plain convolutions; the options are those of :class:`DYConv2d`."""

    layers = {2: DYConv2d}
    temperature_range = SOFTMAX_TEMPERATURE

    num_kernels: int = 4
    reduction: float = 1 / 4
    function: str = 'softmax'
