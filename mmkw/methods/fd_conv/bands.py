"""Spatial gates of frequency bands of maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SMALL, gate
from .spectrum import band_masks, real_columns, uncached_if_recorded

_MAX_GROUPS = 64  # More mean a gate for each channel.


class BandConv(nn.Module):
    """A 3 x 3 convolution to the gates of a band, of one for each group of channels."""

    def __init__(self, in_channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, in_channels // groups, 3, 3))
        self.bias = nn.Parameter(torch.empty(groups))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=len(self.bias))


class BandModulation(nn.Module):
    r"""Spatial gates of the frequency bands of maps.

    With :math:`L_j` the part of ``x`` below the frequency of band ``j``, :math:`L_0 = x`, and gates
    :math:`A_j = 2 \sigma(\mathrm{conv}_j(x))`, the maps become
    :math:`\sum_j A_j (L_{j-1} - L_j)` plus the last low part.

    Args:
        in_channels: of the maps.
        bands: see :func:`~mmkw.methods.fd_conv.band_masks`.
        groups: of channels, each with a gate of its own; more than 64 mean one for each channel.
        activation: ``'sigmoid'``; ``'tanh'`` for :math:`1 + \tanh(z)`; ``'softmax'`` over the
            groups, times their number.
        gates_lowest: whether the last low part has a gate, too.
        mask_size: see :func:`~mmkw.methods.fd_conv.band_masks`.

    Raises:
        ValueError: if the groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        bands: Sequence[int],
        groups: int = 1,
        activation: str = 'sigmoid',
        gates_lowest: bool = False,
        mask_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        groups = in_channels if groups > _MAX_GROUPS else groups
        if in_channels % groups:
            raise ValueError(
                f'band_groups must divide the {in_channels} input channels, but got {groups}'
            )
        self.bands, self.mask_size = tuple(bands), tuple(mask_size)
        self.activation = activation
        count = len(self.bands) + gates_lowest
        self.freq_weight_conv_list = nn.ModuleList(
            BandConv(in_channels, groups) for _ in range(count)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in self.freq_weight_conv_list:
            nn.init.normal_(conv.weight, std=SMALL)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft2(exact, norm='ortho')
        size = tuple(exact.shape[2:])
        find_masks = uncached_if_recorded(band_masks)
        masks = find_masks(size, self.bands, self.mask_size, x.device).to(exact.dtype)
        above, result = exact, 0
        for mask, conv in zip(masks, self.freq_weight_conv_list):
            rows = torch.fft.ifft(spectrum * mask, dim=2, norm='ortho')
            low = torch.fft.irfft(real_columns(rows, size[1]), n=size[1], dim=3, norm='ortho')
            result = result + self.gated(conv(x), above - low)
            above = low
        if len(self.freq_weight_conv_list) > len(masks):
            above = self.gated(self.freq_weight_conv_list[-1](x), above)
        return (result + above).to(x.dtype)

    def gated(self, logits: Tensor, band: Tensor) -> Tensor:
        """A band times its gates, from their logits, ``(N, groups, H, W)``."""
        groups = logits.shape[1]
        if self.activation == 'softmax':
            gates = logits.softmax(1) * groups
        else:
            gates = gate(logits, self.activation, 2)
        return (gates.unsqueeze(2) * band.unflatten(1, (groups, -1))).flatten(1, 2)
