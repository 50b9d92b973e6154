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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import check_positive, checks_arguments
from ...ops.mixing import scale_maps, scale_positions
from ...ops.routes import add_bias, is_forced, kernel_conv, recording_mode
from ..base import DynamicConvNd, IntOrTuple
from ..loaded import check_attention, tensor_of, wrong_kernel
from ..registry import Method, register_method
from .attention import Gates, GlobalAttention, LocalAttention, check_choice, gate
from .bands import BandModulation
from .spectrum import (
    check_groups,
    frequency_groups,
    frequency_order,
    kernel_spectrum,
    spectrum_kernels,
    uncached_if_recorded,
)

_ACTIVATIONS = ('sigmoid', 'tanh', 'softmax')
# Unknown to PyTorch 2.1.
_is_compiling = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)


class FDConv2d(DynamicConvNd):
    """Frequency dynamic convolution.

    Layers with few input or output channels, or with a kernel side that is not listed, are plain
    convolutions with an ordinary ``weight``. A plain kernel of a checkpoint is converted to its
    spectrum. The filter gates of a new layer are random, as in the authors' code, so that a
    converted network is not the plain one, unless ``starts_at_one`` is set.

    Args:
        in_channels, ..., dtype: all arguments but ``groups`` as in ``nn.Conv2d``, with a square
            kernel; the bias is static.
        groups: 1, as sets of frequencies are those of the whole kernel.
        num_kernels: ``n``, sets of Fourier coefficients. Defaults to 64, as in all released models.
            ``None`` takes half of the output channels, and ``sqrt(n P)`` as
            ``kernel_temperature``.
        reduction: hidden width of the global attention relative to ``in_channels``; at least 16.
            Defaults to 1/16.
        activation: of the global attention: ``'sigmoid'`` (default), ``'tanh'``, or ``'softmax'``
            together with ``only_kernel_attention``.
        max_gate: the largest value of a sigmoid gate. Defaults to 2, with which gates start at 1.
        temperature: constant that divides the logits of the gates. Defaults to 1; ``None`` takes
            ``kernel_temperature``.
        kernel_temperature: constant that divides the logits of the sets' weights. Defaults to 1.
        only_kernel_attention: whether to leave out the gates of channels, filters and positions.
            Defaults to ``False``.
        local_gate: whether each element of the kernel has a gate of its own. Defaults to ``True``.
        local_activation: of that gate: ``'sigmoid'`` (default) or ``'tanh'``.
        bands: see :func:`~mmkw.methods.fd_conv.band_masks`; empty for none. Defaults to (2, 4, 8).
        band_activation, band_groups, low_band_gate: see
            :class:`~mmkw.methods.fd_conv.BandModulation`. Default to ``'sigmoid'``, 1 and
            ``False``.
        mask_size: see :func:`~mmkw.methods.fd_conv.band_masks`. Defaults to (64, 64).
        band_kernel_sizes: kernel sides with which bands are gated. Defaults to (3,).
        bands_if_strided: whether other layers with a stride have bands, too. Defaults to
            ``False``.
        copies: ``P``, spectra that are added. Defaults to 1. As in the authors' code, a converted
            kernel is that many times too large.
        kept: part of the coefficients that the layer has, from low frequencies on. Defaults to 1.
            As in the authors' code, with less a converted kernel is blurred, and
            ``n P min(C_in, C_out) / 2`` times too small.
        stores_kernel: whether the parameter is the kernel, transformed in each forward pass,
            instead of its spectrum. Defaults to ``False``.
        min_channels: layers with fewer input or output channels are plain. Defaults to 17.
        kernel_sizes: kernel sides of layers that are not plain. Defaults to (1, 3).
        starts_at_one: whether all gates of a new layer are 1. Defaults to ``False``.

    Raises:
        ValueError: if there are groups, the kernel is not square, ``in_channels`` times its side is
            odd, ``num_kernels`` does not divide the number of Fourier coefficients, ``band_groups``
            does not divide the input channels, or an option has another value than described; when
            loading a plain kernel of another shape, or a layer with other options.
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
        num_kernels: int | None = 64,
        reduction: float = 1 / 16,
        activation: str = 'sigmoid',
        max_gate: float = 2.0,
        temperature: float | None = 1.0,
        kernel_temperature: float = 1.0,
        only_kernel_attention: bool = False,
        local_gate: bool = True,
        local_activation: str = 'sigmoid',
        bands: Sequence[int] = (2, 4, 8),
        band_activation: str = 'sigmoid',
        band_groups: int = 1,
        low_band_gate: bool = False,
        mask_size: tuple[int, int] = (64, 64),
        band_kernel_sizes: Sequence[int] = (3,),
        bands_if_strided: bool = False,
        copies: int = 1,
        kept: float = 1.0,
        stores_kernel: bool = False,
        min_channels: int = 17,
        kernel_sizes: Sequence[int] = (1, 3),
        starts_at_one: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        is_derived = num_kernels is None
        num_kernels = out_channels // 2 if is_derived else num_kernels
        counts = dict(num_kernels=num_kernels, copies=copies, band_groups=band_groups)
        for name, value in counts.items():
            check_positive(name, value, whole=True)
        if is_derived:
            kernel_temperature = math.sqrt(num_kernels * copies)
        if temperature is None:
            temperature = kernel_temperature
        numbers = dict(
            reduction=reduction, max_gate=max_gate, temperature=temperature,
            kernel_temperature=kernel_temperature, kept=kept,
        )  # fmt: skip
        for name, number in numbers.items():
            check_positive(name, number)
        check_choice('activation', activation, _ACTIVATIONS[: 2 + only_kernel_attention])
        check_choice('local_activation', local_activation, _ACTIVATIONS[:2])
        check_choice('band_activation', band_activation, _ACTIVATIONS)
        if kept > 1 or (kept < 1 and stores_kernel):
            raise ValueError(
                f'kept must be at most 1, and 1 with stores_kernel, but got {kept} and '
                f'stores_kernel={stores_kernel}'
            )
        size = self.kernel_size[0]
        self.num_kernels, self.copies, self.kept = num_kernels, copies, kept
        self.max_gate, self.local_activation = max_gate, local_activation
        self.KSM_Global = self.KSM_Local = self.FBM = None
        self.is_plain = min(in_channels, out_channels) < min_channels or size not in kernel_sizes
        self.stores_kernel = stores_kernel or self.is_plain
        if not self.is_plain:
            self._check_shape(groups)
            rows, columns = self.spectrum_shape
            coefficients = int(rows * columns * kept)
            check_groups(coefficients, num_kernels)
        if self.stores_kernel:
            self.weight = nn.Parameter(torch.empty(self.kernel_shape))
        else:
            bins = (rows, columns) if kept == 1 else (coefficients,)
            self.dft_weight = nn.Parameter(torch.empty(copies, *bins, 2))
        if not self.is_plain:
            self.KSM_Global = GlobalAttention(
                in_channels, out_channels, size * size, num_kernels * copies, reduction, activation,
                max_gate, (temperature, kernel_temperature), not only_kernel_attention,
                starts_at_one,
            )  # fmt: skip
            strided = bands_if_strided and max(self.stride) > 1
            if bands and (size in band_kernel_sizes or strided):
                self.FBM = BandModulation(
                    in_channels, bands, band_groups, band_activation, low_band_gate, mask_size
                )
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
        if self.stores_kernel:
            self.weight.copy_(kernel)
        else:
            self.dft_weight.copy_(self.converted(kernel))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for part in self.children():
            part.reset_parameters()
        self.reset_kernel()

    def init_weights(self) -> None:
        """Initialise all parameters anew; OpenMMLab's modules call it instead of their own way."""
        self.reset_parameters()

    @property
    def spectrum_shape(self) -> tuple[int, int]:
        """``(R, S)``, rows and columns of the spectrum of a kernel."""
        size = self.kernel_size[0]
        return self.out_channels * size, self.in_channels * size // 2 + 1

    @property
    def spectrum_scale(self) -> int:
        """``m``, half of the smaller number of channels, by which spectra are divided."""
        return min(self.in_channels, self.out_channels) // 2

    def converted(self, kernel: Tensor) -> Tensor:
        """``dft_weight`` for a plain kernel."""
        spectrum = kernel_spectrum(kernel) / self.spectrum_scale
        if self.kept < 1:
            order = frequency_order(*spectrum.shape, spectrum.device)
            spectrum = spectrum.flatten()[order[: self.dft_weight.shape[1]]]
        return torch.view_as_real(spectrum).expand(self.copies, *[-1] * (spectrum.dim() + 1))

    def pad(self, x: Tensor) -> Tensor:
        """Gate the bands of the input, then pad it."""
        # The compiler says that it exports, too; counting operations forces the reference.
        is_recorded = recording_mode() == 'any batch' and not _is_compiling()
        if is_recorded and not self.is_plain and not is_forced('reference'):
            raise RuntimeError(
                f'{self.title()} cannot be recorded: the Fourier transforms of FDConv2d are for '
                f'one size only there, and ONNX has none; run it in PyTorch'
            )
        return super().pad(x if self.FBM is None else self.FBM(x))

    def weighted_spectra(self, weights: Tensor) -> Tensor:
        """The spectra whose sets have these weights, ``(N, n P)``; shape ``(N, R, S)``."""
        rows, columns = self.spectrum_shape
        parameter = self.converted(self.weight) if self.stores_kernel else self.dft_weight
        parameter = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
        coefficients = torch.view_as_complex(parameter.contiguous()).flatten(1)
        shares = weights.to(parameter.dtype).unflatten(1, (self.copies, -1))
        if self.kept < 1:
            count, device = coefficients.shape[1], parameter.device
            order = uncached_if_recorded(frequency_order)(rows, columns, device)[:count]
            sets = torch.arange(count, device=device) // (count // self.num_kernels)
            total = (coefficients * shares[:, :, sets]).sum(1)
            spectra = total.new_zeros(len(weights), rows * columns).index_copy(1, order, total)
            return spectra.unflatten(1, (rows, columns))
        groups = uncached_if_recorded(frequency_groups)(
            rows, columns, self.num_kernels, parameter.device
        )
        scale = self.spectrum_scale * self.num_kernels * self.copies
        spectra = coefficients * (scale * shares)[:, :, groups]
        spectra = spectra.squeeze(1) if self.copies == 1 else spectra.sum(1)
        return spectra.unflatten(1, (rows, columns))

    def sample_kernels(self, pooled: Tensor) -> Tensor:
        """The kernels for the pooled input, without the gates of bands."""
        if self.is_plain:
            return self.weight.expand(len(pooled), -1, -1, -1, -1)
        if pooled.shape[0] == 0:  # which the Fourier transforms do not take
            parameter = self.weight if self.stores_kernel else self.dft_weight
            return parameter.sum() * parameter.new_zeros(0, *self.kernel_shape)
        gates = self.KSM_Global(pooled)
        kernels = self.partial_kernels(pooled, gates)
        if gates.channel is not None and gates.filter is not None:
            kernels = kernels * gates.channel.to(kernels.dtype)[:, None, :, None, None]
            kernels = kernels * gates.filter.to(kernels.dtype)[:, :, None, None, None]
        return kernels

    def partial_kernels(self, pooled: Tensor, gates: Gates) -> Tensor:
        """The kernels without the gates of input channels and filters."""
        size = self.kernel_size[0]
        kernels = spectrum_kernels(self.weighted_spectra(gates.kernel), size)
        if gates.spatial is not None:
            kernels = scale_positions(kernels, gates.spatial.to(kernels.dtype))
        if self.KSM_Local is not None:
            logits = self.KSM_Local(pooled).unflatten(1, (self.out_channels, size, size))
            local = gate(logits, self.local_activation, self.max_gate)
            kernels = kernels * local.permute(0, 1, 4, 2, 3).to(kernels.dtype)
        return kernels.to(self.weight.dtype if self.stores_kernel else self.dft_weight.dtype)

    @property
    def mixes(self) -> bool:
        return not self.is_plain

    def mixing_weights(self, pooled: Tensor) -> Tensor:
        return self.KSM_Global(pooled).kernel.unsqueeze(1)

    def convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        if self.is_plain:
            return F.conv2d(x, self.weight.to(x.dtype), self.bias, **geometry)
        maps = (self.in_channels + self.out_channels) * x.shape[2] * x.shape[3]
        if len(x) == 0 or math.prod(self.kernel_shape) < maps:
            return kernel_conv(x, self.sample_kernels(pooled), self.bias, **geometry)
        # The maps are smaller than the kernels, so that the gates of channels scale the maps.
        gates = self.KSM_Global(pooled)
        x = scale_maps(x, gates.channel)
        y = scale_maps(
            kernel_conv(x, self.partial_kernels(pooled, gates), **geometry), gates.filter
        )
        return y if self.bias is None else add_bias(y, self.bias)

    @property
    def mixing_operations(self) -> int:
        """Those of coefficients and gates, without Fourier transforms and gated bands."""
        if self.is_plain:
            return 0
        heads = (self.KSM_Global.channel_fc, self.KSM_Global.filter_fc, self.KSM_Global.spatial_fc)
        gates = sum(module is not None for module in (*heads, self.KSM_Local))
        coefficients = 2 * self.copies * int(math.prod(self.spectrum_shape) * self.kept)
        local = 0
        if self.KSM_Local is not None:
            local = self.KSM_Local.conv.weight.numel() * self.in_channels
        return coefficients + local + gates * math.prod(self.kernel_shape)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        kernel = None if self.is_plain else tensor_of(state_dict, prefix + 'weight')
        if kernel is not None:
            if tuple(kernel.shape) != tuple(self.kernel_shape):
                raise wrong_kernel(f'{prefix}weight', kernel, self.kernel_shape)
            if not self.stores_kernel:
                del state_dict[prefix + 'weight']
                state_dict[prefix + 'dft_weight'] = self.converted(kernel.to(self.dft_weight))
        gates = (prefix + 'KSM_', prefix + 'FBM')
        if any(name.startswith(gates) for name in state_dict):
            check_attention(self, state_dict, prefix, with_first=True)
        elif kernel is not None:
            # It is a plain checkpoint. The gates of the layer stay as they are.
            own = self.state_dict(prefix=prefix).items()
            state_dict.update({name: value for name, value in own if name.startswith(gates)})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def method_repr(self) -> str:
        return 'plain' if self.is_plain else f'num_kernels={self.num_kernels}'


@register_method
@dataclass(frozen=True)
class FDConv(Method):
    """FDConv in the places of plain convolutions; the options are those of :class:`FDConv2d`."""

    layers = {2: FDConv2d}

    num_kernels: int | None = 64
    reduction: float = 1 / 16
    activation: str = 'sigmoid'
    max_gate: float = 2.0
    temperature: float | None = 1.0
    kernel_temperature: float = 1.0
    only_kernel_attention: bool = False
    local_gate: bool = True
    local_activation: str = 'sigmoid'
    bands: Sequence[int] = (2, 4, 8)
    band_activation: str = 'sigmoid'
    band_groups: int = 1
    low_band_gate: bool = False
    mask_size: tuple[int, int] = (64, 64)
    band_kernel_sizes: Sequence[int] = (3,)
    bands_if_strided: bool = False
    copies: int = 1
    kept: float = 1.0
    stores_kernel: bool = False
    min_channels: int = 17
    kernel_sizes: Sequence[int] = (1, 3)
    starts_at_one: bool = False
