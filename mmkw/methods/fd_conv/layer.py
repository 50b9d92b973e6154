r"""Frequency dynamic convolution, FDConv (Chen et al., CVPR 2025).

.. math::
    y = \big(G(x) \odot \mathcal{F}^{-1}\big(\textstyle\sum_g \pi_g(x)\, \mathbf{D}_g\big)\big)
        * \sum_b A_b(x) \odot x_b

The Fourier coefficients of one kernel are cut into ``n`` sets :math:`\mathbf{D}_g` of equal size,
from low to high frequency. An attention :math:`\pi` weighs the sets, and one inverse transform
gives the kernel. Gates ``G`` scale it elementwise, and spatial gates :math:`A_b` scale frequency
bands :math:`x_b` of the input. Names of parameters are those of the authors' code, whose
checkpoints load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import check_positive, checks_arguments
from ...ops.routes import kernel_conv, recording_mode
from ..base import AttentionLinear, DynamicConvNd, IntOrTuple, autocast_off
from ..loaded import tensor_of
from ..registry import Method, register_method
from .spectrum import (
    band_masks,
    frequency_groups,
    kernel_spectrum,
    real_columns,
    spectrum_kernels,
)

_MIN_CHANNELS = 16  # Layers with no more input or output channels stay plain.
_MIN_HIDDEN = 16
_SMALL = 1e-6
# Unknown to PyTorch 2.1.
_is_compiling = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)


def uncached_if_recorded(function: Any) -> Any:
    """A cached function, or itself where its result would be a placeholder of a recording."""
    return function if recording_mode() is None else function.__wrapped__


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

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.relu().square() + self.bias


class Gates(NamedTuple):
    """What the global attention computes: gates, and the weights of the sets of coefficients.

    Attributes:
        channel, filter: of input and output channels, ``(N, C_in)`` and ``(N, C_out)``.
        spatial: of the kernel's positions, ``(N, k * k)``; ``None`` where there is one.
        kernel: ``pi``, shape ``(N, n)``.
    """

    channel: Tensor
    filter: Tensor
    spatial: Tensor | None
    kernel: Tensor


class GlobalAttention(nn.Module):
    r"""Gates from a hidden vector, :math:`c\,\sigma(z)`, and :math:`\pi = 2 \sigma(z) / n`.

    Args:
        in_channels, out_channels, positions: of the convolution.
        num_kernels: ``n``.
        reduction: hidden width relative to ``in_channels``; the width is at least 16.
        max_gate: ``c``.
        starts_at_one: whether the filter gates start at 1, as the others do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        positions: int,
        num_kernels: int,
        reduction: float,
        max_gate: float,
        starts_at_one: bool,
    ) -> None:
        super().__init__()
        self.max_gate = max_gate
        self.starts_at_one = starts_at_one
        hidden = max(int(in_channels * reduction), _MIN_HIDDEN)
        self.fc = PointwiseLinear(in_channels, hidden, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = StarReLU()
        self.channel_fc = PointwiseLinear(hidden, in_channels)
        self.filter_fc = PointwiseLinear(hidden, out_channels)
        self.spatial_fc = PointwiseLinear(hidden, positions) if positions > 1 else None
        self.kernel_fc = PointwiseLinear(hidden, num_kernels)
        self.reset_heads()

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Start with gates of 1. The filter head stays random, as in the authors' code."""
        small = [self.channel_fc, self.spatial_fc, self.kernel_fc]
        for head in [*small, *([self.filter_fc] if self.starts_at_one else [])]:
            if head is not None:
                nn.init.normal_(head.weight, std=_SMALL)

    def forward(self, pooled: Tensor) -> Gates:
        """Gates for the pooled input, shape ``(N, C_in)``."""
        hidden = self.relu(self.bn(self.fc(pooled)[..., None, None]).flatten(1))

        def gate(head: PointwiseLinear) -> Tensor:
            return self.max_gate * head(hidden).sigmoid()

        kernel = self.kernel_fc(hidden).sigmoid()
        return Gates(
            gate(self.channel_fc),
            gate(self.filter_fc),
            None if self.spatial_fc is None else gate(self.spatial_fc),
            2 * kernel / kernel.shape[1],
        )


class ChannelConv(nn.Module):
    """Convolution along the channels, from one map to many, without bias."""

    def __init__(self, maps: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((maps, 1, size), _SMALL))

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

    def forward(self, pooled: Tensor) -> Tensor:
        """``(N, C_in)`` to ``(N, maps, C_in)``."""
        with autocast_off(pooled):
            pooled = pooled.to(self.conv.weight.dtype)
            return self.conv(self.norm(pooled).unsqueeze(1))


class BandConv(nn.Module):
    """A 3 x 3 convolution to the gate of a band."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.weight, std=_SMALL)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class BandModulation(nn.Module):
    r"""Spatial gates of the frequency bands of maps.

    With :math:`L_j` the part of ``x`` below the frequency of band ``j``, :math:`L_0 = x`, and gates
    :math:`A_j = 2 \sigma(\mathrm{conv}_j(x))`, the maps become
    :math:`\sum_j A_j (L_{j-1} - L_j)` plus the last low part.

    Args:
        in_channels: of the maps.
        bands: see :func:`~mmkw.methods.fd_conv.band_masks`.
    """

    def __init__(self, in_channels: int, bands: Sequence[int]) -> None:
        super().__init__()
        self.bands = tuple(bands)
        self.freq_weight_conv_list = nn.ModuleList(BandConv(in_channels) for _ in bands)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft2(exact, norm='ortho')
        masks = uncached_if_recorded(band_masks)(tuple(exact.shape[2:]), self.bands, x.device)
        masks = masks.to(exact.dtype)
        size, above, result = exact.shape[2:], exact, 0
        for mask, conv in zip(masks, self.freq_weight_conv_list):
            rows = torch.fft.ifft(spectrum * mask, dim=2, norm='ortho')
            low = torch.fft.irfft(real_columns(rows, size[1]), n=size[1], dim=3, norm='ortho')
            result = result + 2 * conv(x).sigmoid() * (above - low)
            above = low
        return (result + above).to(x.dtype)


class FDConv2d(DynamicConvNd):
    """Frequency dynamic convolution.

    Layers with 16 or fewer input or output channels, or with a kernel side other than 1 and 3, are
    plain convolutions with an ordinary ``weight``. Bands are gated where the kernel side is 3. A
    plain kernel of a checkpoint is converted to its spectrum. The filter gates of a new layer are
    not 1, so that a converted network differs by some percent from the plain one, as the authors'
    does, unless ``starts_at_one`` is set.

    Args:
        in_channels, ..., dtype: all arguments but ``groups`` as in ``nn.Conv2d``, with a square
            kernel; the bias is static.
        groups: 1, as sets of frequencies are those of the whole kernel.
        num_kernels: ``n``, sets of Fourier coefficients. Defaults to 64, as in all released models.
        reduction: hidden width of the global attention relative to ``in_channels``; at least 16.
            Defaults to 1/16.
        max_gate: the largest value of a gate. Defaults to 2, with which gates start at 1.
        local_gate: whether each element of the kernel has a gate of its own. Defaults to True.
        bands: see :func:`~mmkw.methods.fd_conv.band_masks`; empty for none. Defaults to (2, 4, 8).
        starts_at_one: whether all gates of a new layer are 1. Defaults to False.

    Raises:
        ValueError: if there are groups, the kernel is not square, ``in_channels`` times its side is
            odd, ``num_kernels`` does not divide the number of Fourier coefficients, or a number is
            not positive; when loading a plain kernel of another shape.
        RuntimeError: in ``torch.export``, an ONNX export or a trace.
    """

    plain_type = nn.Conv2d

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
        num_kernels: int = 64,
        reduction: float = 1 / 16,
        max_gate: float = 2.0,
        local_gate: bool = True,
        bands: Sequence[int] = (2, 4, 8),
        starts_at_one: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        check_positive('num_kernels', num_kernels, whole=True)
        check_positive('reduction', reduction)
        check_positive('max_gate', max_gate)
        size = self.kernel_size[0]
        self.num_kernels = num_kernels
        self.KSM_Global = self.KSM_Local = self.FBM = None
        self.is_plain = min(in_channels, out_channels) <= _MIN_CHANNELS or size not in (1, 3)
        if self.is_plain:
            self.weight = nn.Parameter(torch.empty(self.kernel_shape))
        else:
            self._check_shape(groups)
            shape = (1, out_channels * size, in_channels * size // 2 + 1, 2)
            frequency_groups(*shape[1:3], num_kernels)
            self.dft_weight = nn.Parameter(torch.empty(shape))
            self.KSM_Global = GlobalAttention(
                in_channels, out_channels, size * size, num_kernels, reduction, max_gate,
                starts_at_one,
            )  # fmt: skip
            if size == 3 and bands:
                self.FBM = BandModulation(in_channels, bands)
            if local_gate:
                self.KSM_Local = LocalAttention(in_channels, out_channels * size * size)
        # The gates of bands act on the input, so that kernels alone are not the whole layer.
        self.has_kernels = self.FBM is None
        self.reset_kernel()
        self.to(device, dtype)

    def _check_shape(self, groups: int) -> None:
        if groups != 1:
            raise ValueError(
                f'FDConv2d has no groups, but got groups={groups}; leave grouped convolutions out'
            )
        if self.kernel_size[0] != self.kernel_size[1]:
            raise ValueError(f'FDConv2d needs a square kernel, but got {self.kernel_size}')
        if self.in_channels * self.kernel_size[0] % 2:
            raise ValueError(
                f'FDConv2d needs an even number of input channels, but got {self.in_channels}'
            )

    @torch.no_grad()
    def reset_kernel(self) -> None:
        """Initialise the kernel as ``nn.Conv2d`` does, and the bias, 0."""
        kernel = torch.empty(self.kernel_shape)
        nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        if self.is_plain:
            self.weight.copy_(kernel)
        else:
            self.dft_weight.copy_(self.converted(kernel))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        self.reset_kernel()
        if self.is_plain:
            return
        self.KSM_Global.reset_heads()
        nn.init.ones_(self.KSM_Global.relu.scale)
        nn.init.zeros_(self.KSM_Global.relu.bias)
        if self.KSM_Local is not None:
            nn.init.constant_(self.KSM_Local.conv.weight, _SMALL)
        for conv in [] if self.FBM is None else self.FBM.freq_weight_conv_list:
            nn.init.normal_(conv.weight, std=_SMALL)
            nn.init.zeros_(conv.bias)

    def init_weights(self) -> None:
        """Initialise all parameters anew; OpenMMLab's modules call it instead of their own way."""
        self.reset_parameters()

    @property
    def spectrum_scale(self) -> int:
        """``m``, half of the smaller number of channels, by which spectra are divided."""
        return min(self.in_channels, self.out_channels) // 2

    def converted(self, kernel: Tensor) -> Tensor:
        """``dft_weight`` for a plain kernel."""
        return torch.view_as_real(kernel_spectrum(kernel) / self.spectrum_scale)[None]

    def pad(self, x: Tensor) -> Tensor:
        """Gate the bands of the input, then pad it."""
        # The compiler, which is not refused, says that it exports, too.
        is_recorded = recording_mode() == 'any batch' and not _is_compiling()
        if is_recorded and not self.is_plain:
            raise RuntimeError(
                f'{self.title()} cannot be recorded: the Fourier transforms of FDConv2d are for '
                f'one size only there, and ONNX has none; run it in PyTorch'
            )
        return super().pad(x if self.FBM is None else self.FBM(x))

    def sample_kernels(self, pooled: Tensor) -> Tensor:
        """The kernels for the pooled input, without the gates of bands."""
        if self.is_plain:
            return self.weight.expand(len(pooled), -1, -1, -1, -1)
        if pooled.shape[0] == 0:  # which the Fourier transforms do not take
            return self.dft_weight.sum() * self.dft_weight.new_zeros(0, *self.kernel_shape)
        self.check_batch_norm(self.KSM_Global.bn, len(pooled))
        gates, size = self.KSM_Global(pooled), self.kernel_size[0]
        weight = self.dft_weight[0].to(torch.promote_types(self.dft_weight.dtype, torch.float32))
        rows, columns, _ = weight.shape
        find_groups = uncached_if_recorded(frequency_groups)
        groups = find_groups(rows, columns, self.num_kernels, weight.device)
        shares = gates.kernel.to(weight.dtype)[:, groups].view(-1, rows, columns)
        scale = self.spectrum_scale * self.num_kernels
        spectra = torch.view_as_complex(weight) * (scale * shares)
        kernels = spectrum_kernels(spectra, size)
        kernels = kernels * gates.channel[:, None, :, None, None].to(kernels.dtype)
        kernels = kernels * gates.filter[:, :, None, None, None].to(kernels.dtype)
        if gates.spatial is not None:
            kernels = kernels * gates.spatial.view(-1, 1, 1, size, size).to(kernels.dtype)
        if self.KSM_Local is not None:
            logits = self.KSM_Local(pooled).unflatten(1, (self.out_channels, size, size))
            local = self.KSM_Global.max_gate * logits.permute(0, 1, 4, 2, 3).sigmoid()
            kernels = kernels * local.to(kernels.dtype)
        return kernels.to(self.dft_weight.dtype)

    def convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        if self.is_plain:
            return F.conv2d(x, self.weight.to(x.dtype), self.bias, **geometry)
        return kernel_conv(x, self.sample_kernels(pooled), self.bias, **geometry)

    @property
    def mixing_operations(self) -> int:
        """A multiply-add for each coefficient, and for each gate of each element of the kernel."""
        if self.is_plain:
            return 0
        gates = 2 + (self.KSM_Global.spatial_fc is not None) + (self.KSM_Local is not None)
        return self.dft_weight.numel() + gates * math.prod(self.kernel_shape)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        kernel = None if self.is_plain else tensor_of(state_dict, prefix + 'weight')
        if kernel is not None:
            if tuple(kernel.shape) != tuple(self.kernel_shape):
                raise ValueError(
                    f'{prefix}weight of the checkpoint has shape {tuple(kernel.shape)}, but the '
                    f'model needs {tuple(self.kernel_shape)}: it is of another architecture, depth '
                    f'or width'
                )
            del state_dict[prefix + 'weight']
            converted = self.converted(kernel.to(self.dft_weight))
            state_dict[prefix + 'dft_weight'] = converted
            # A plain checkpoint has no gates; those of the layer stay as they are.
            for name, value in self.state_dict(prefix=prefix).items():
                if name[len(prefix) :].startswith(('KSM_', 'FBM')):
                    state_dict.setdefault(name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def method_repr(self) -> str:
        return 'plain' if self.is_plain else f'num_kernels={self.num_kernels}'


@register_method
@dataclass(frozen=True)
class FDConv(Method):
    """FDConv in the places of plain convolutions; the options are those of :class:`FDConv2d`."""

    layers = {2: FDConv2d}

    num_kernels: int = 64
    reduction: float = 1 / 16
    max_gate: float = 2.0
    local_gate: bool = True
    bands: Sequence[int] = (2, 4, 8)
    starts_at_one: bool = False
