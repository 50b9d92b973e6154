r"""WeightNet (Ma et al., ECCV 2020): a linear layer in groups makes kernels from attentions.

.. math:: a = \sigma(F_2 F_1 \bar x), \qquad
    \mathbf{W}_{og} = \sum_{m} a_{ogm} \mathbf{V}_{ogm}

with the pooled input :math:`\bar x`. The kernel of each output channel ``o`` is cut into ``G``
parts, and each part is a sum of ``M / G`` learned ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import check_positive, checks_arguments
from .base import AttentionLinear, IntOrTuple
from .generated import GeneratedConv2d
from .registry import Method, register_method


class WeightNetAttention(nn.Module):
    """Attentions for each output channel: linear, linear, sigmoid, both with bias.

    Args:
        in_channels: over all groups.
        features: number of attentions.
        reduction: width between the linear layers relative to ``in_channels``.
        min_width: the least such width.
    """

    def __init__(self, in_channels: int, features: int, reduction: float, min_width: int) -> None:
        super().__init__()
        width = max(int(in_channels * reduction), min_width)
        self.reduce = AttentionLinear(in_channels, width)
        self.fc = AttentionLinear(width, features)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        self.reduce.reset_parameters()
        self.fc.reset_parameters()

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, in_channels)`` to ``(N, features)``."""
        return self.fc(self.reduce(pooled)).sigmoid()


class WeightNetConv2d(GeneratedConv2d):
    """WeightNet with a reduction of its own for each convolution.

    In the paper the convolutions of a block share the first linear layer. A ResNet18 has 11,948,376
    parameters this way, and 11,915,192 that way; the KernelWarehouse paper prints 11.93M.

    Args:
        in_channels, ..., dtype: all arguments as in ``nn.Conv2d``; the bias is static.
        multiplier: ``M``, attentions of each output channel. Defaults to 2.
        parts: ``G``, into how many parts the kernel of an output channel is cut. Defaults to 2.
        reduction: width of the attention's hidden layer relative to ``in_channels``; at least 16.
            Defaults to 1/16.

    Raises:
        ValueError: if a number is not positive, or ``parts`` divides neither ``multiplier`` nor
            the kernel of an output channel.
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
        multiplier: int = 2,
        parts: int = 2,
        reduction: float = 1 / 16,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        for name, value in dict(multiplier=multiplier, parts=parts).items():
            check_positive(name, value, whole=True)
        check_positive('reduction', reduction)
        size = math.prod(self.kernel_shape[1:])
        if multiplier % parts or size % parts:
            raise ValueError(
                f'WeightNetConv2d needs parts that divide multiplier={multiplier} and the {size} '
                f'elements of the kernel of an output channel, but got parts={parts}'
            )
        shape = (out_channels, parts, multiplier // parts, size // parts)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.attention = WeightNetAttention(in_channels, out_channels * multiplier, reduction, 16)
        self.attention.to(device, dtype)
        self.reset_own()

    def generate(self, pooled: Tensor) -> Tensor:
        attentions = self.attention(pooled).to(self.weight.dtype)
        attentions = attentions.view(pooled.shape[0], *self.weight.shape[:3])
        kernels = torch.einsum('nogm,ogmj->nogj', attentions, self.weight)
        return kernels.reshape(pooled.shape[0], *self.kernel_shape)

    def method_repr(self) -> str:
        _, parts, each, _ = self.weight.shape
        return f'multiplier={parts * each}, parts={parts}'


@register_method
@dataclass(frozen=True)
class WeightNet(Method):
    """WeightNet in the places of convolutions; options as in :class:`WeightNetConv2d`."""

    layers = {2: WeightNetConv2d}

    multiplier: int = 2
    parts: int = 2
    reduction: float = 1 / 16
