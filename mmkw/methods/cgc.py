r"""Context-gated convolution, CGC (Lin et al., ECCV 2020).

.. math:: y = \big(\mathbf{W} \odot \sigma(g^{in}_i + g^{out}_o)\big) * x

The kernel from input channel ``i`` to output channel ``o`` is gated at each of its ``k x k``
positions by the sum of a gate of ``i`` and one of ``o``, both of the input's context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_positive, checks_arguments
from .base import AttentionLinear, IntOrTuple
from .generated import GeneratedConv2d
from .registry import Method, register_method


class ContextGate(nn.Module):
    r"""The gates of the input and output channels, from the input averaged to ``k x k`` positions.

    .. math:: c = E f, \quad g^{in} = D_1 \mathrm{ReLU}(\mathrm{BN}(c)), \quad
        g^{out} = D_2 \mathrm{ReLU}(\mathrm{BN}(C\, \mathrm{ReLU}(\mathrm{BN}(c))))

    ``E`` takes the positions of each channel to ``d`` numbers, and both ``D`` take them back; ``C``
    takes ``g`` input channels to as many output channels as their part of all, the same for all
    such groups. None has a bias.

    Args:
        in_channels, out_channels: of the convolution.
        positions: of its kernel.
        group: ``g``.
    """

    def __init__(self, in_channels: int, out_channels: int, positions: int, group: int) -> None:
        super().__init__()
        latent = int(positions / 2 + 1)
        self.group = group
        self.encode = AttentionLinear(positions, latent, bias=False)
        self.in_norm = nn.BatchNorm1d(in_channels)
        self.in_decode = AttentionLinear(latent, positions, bias=False)
        self.mix_norm = nn.BatchNorm1d(in_channels)
        self.mix = AttentionLinear(group, out_channels * group // in_channels, bias=False)
        self.out_norm = nn.BatchNorm1d(out_channels)
        self.out_decode = AttentionLinear(latent, positions, bias=False)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for child in self.children():
            child.reset_parameters()

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Gates of ``(N, in_channels, positions)``, and of ``(N, out_channels, positions)``."""
        latent = self.encode(context)
        of_inputs = self.in_decode(self.in_norm(latent).relu())
        groups = self.mix_norm(latent).relu().unflatten(1, (-1, self.group))
        mixed = self.mix(groups.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
        return of_inputs, self.out_decode(self.out_norm(mixed).relu())


class CGConv2d(GeneratedConv2d):
    """Context-gated convolution.

    Args:
        in_channels, ..., dtype: all but ``groups`` as in ``nn.Conv2d``; the bias is static.
        groups: 1, as the gates are of whole channels.
        group_channels: ``g``, input channels of which a part of the output channels' gates is
            made; all of them if there are fewer. Defaults to 16.

    Raises:
        ValueError: if there are groups, if ``group_channels`` is not positive, or if input and
            output channels cannot be cut into the same number of groups of channels.
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
        group_channels: int = 16,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if groups != 1:
            raise ValueError(
                f'CGConv2d has no groups, but got groups={groups}; leave grouped convolutions out'
            )
        check_positive('group_channels', group_channels, whole=True)
        group = min(group_channels, in_channels)
        if in_channels % group or out_channels % (in_channels // group):
            raise ValueError(
                f'CGConv2d cuts its input channels into groups of {group}, and its output channels '
                f'into as many groups, but got {in_channels} and {out_channels} channels; set '
                f'group_channels to a number that divides them'
            )
        self.weight = nn.Parameter(torch.empty(self.kernel_shape, device=device, dtype=dtype))
        positions = self.kernel_size[0] * self.kernel_size[1]
        self.attention = ContextGate(in_channels, out_channels, positions, group)
        self.attention.to(device, dtype)
        self.reset_own()

    def pool(self, x: Tensor) -> Tensor:
        """The input averaged to the positions of the kernel, ``(N, in_channels, positions)``."""
        return F.adaptive_avg_pool2d(x, self.kernel_size).flatten(2)

    def generate(self, pooled: Tensor) -> Tensor:
        latent = self.attention.encode.weight.shape[0]
        self.check_batch_norm(self.attention.in_norm, pooled.shape[0] * latent)
        of_inputs, of_outputs = self.attention(pooled)
        gates = (of_inputs.unsqueeze(1) + of_outputs.unsqueeze(2)).sigmoid()
        return self.weight * gates.unflatten(3, self.kernel_size).to(self.weight.dtype)

    def method_repr(self) -> str:
        return f'group_channels={self.attention.group}'


@register_method
@dataclass(frozen=True)
class CGC(Method):
    """CGC in the places of plain convolutions; the options are those of :class:`CGConv2d`."""

    layers = {2: CGConv2d}

    group_channels: int = 16
