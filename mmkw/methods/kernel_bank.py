"""Convolutions that mix each sample's kernel from several whole kernels of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arguments import is_whole_number
from ..ops.attention import mixture_attention
from ..ops.mixing import KernelLayout, Mixture
from .bank import BankModule
from .base import DynamicConvNd, DynamicLayer
from .loaded import check_attention, tensor_of
from .temperature import TemperatureRange

# The temperature by which logits are divided before a softmax or sigmoid.
SOFTMAX_TEMPERATURE = TemperatureRange(
    low=1,
    high=math.inf,
    learned=1,
    meaning='a finite number of at least 1, from nearly even attentions (30, say) to learned '
    'ones (1)',
)


# The temperature of Eq. 4 of KernelWarehouse, for attentions by its attention function.
CONTRASTING_TEMPERATURE = TemperatureRange(
    low=0,
    high=1,
    learned=0,
    meaning='a number in [0, 1], from the first kernel alone (1) to learned attentions (0)',
)
KERNEL_FUNCTIONS = ('softmax', 'caf')


def kernel_attention(logits: Tensor, temperature: Tensor, function: str) -> Tensor:
    r"""Attentions over a layer's ``K`` kernels.

    ``'softmax'`` is :math:`\mathrm{softmax}(z / T)`. ``'caf'`` is the attention function of
    KernelWarehouse (Eq. 4, Table 10), :math:`\tau \beta + (1 - \tau) z / (\sum_k |z_k| + 10^{-3})`.
    The paper does not say how kernels are initialised there; here :math:`\beta` is 1 for the first
    kernel and 0 for the others.

    Args:
        logits: shape ``(N, K)``.
        temperature: ``T`` or ``tau``, a tensor without dimensions.
        function: one of :data:`KERNEL_FUNCTIONS`.
    """
    if function == 'softmax':
        return (logits / temperature).softmax(-1)
    beta = logits.new_zeros(logits.shape[-1])
    beta[0] = 1
    return mixture_attention(logits, beta, temperature, function)


def temperature_of(function: str) -> TemperatureRange:
    """The temperatures of an attention function over kernels.

    Raises:
        ValueError: if the function is not one of :data:`KERNEL_FUNCTIONS`.
    """
    if function not in KERNEL_FUNCTIONS:
        raise ValueError(
            f'function must be one of {", ".join(KERNEL_FUNCTIONS)}, but got {function!r}'
        )
    return SOFTMAX_TEMPERATURE if function == 'softmax' else CONTRASTING_TEMPERATURE


class KernelBankLayer(BankModule, DynamicLayer):
    """A layer with ``K`` kernels of its own.

    Attributes:
        weight: parameter, shape ``(K, out_channels, in_channels / groups, *kernel_size)``.
    """

    weight: nn.Parameter

    def add_kernels(self, num_kernels: int, device=None, dtype=None) -> None:
        """Create the parameter ``weight``.

        Raises:
            ValueError: if ``num_kernels`` is not a positive integer.
        """
        if not is_whole_number(num_kernels):
            raise ValueError(
                f'{type(self).__name__} needs a positive whole number of kernels, but got '
                f'num_kernels={num_kernels!r}'
            )
        self.num_kernels = num_kernels
        self.weight = nn.Parameter(
            torch.empty(num_kernels, *self.kernel_shape, device=device, dtype=dtype)
        )
        self.reset_kernels()

    @torch.no_grad()
    def reset_kernels(self) -> None:
        """Initialise each kernel, Kaiming normal over fan_out, and the bias, 0."""
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialise kernels, bias and attention anew."""
        self.reset_kernels()
        if self.attention is not None:
            self.attention.reset_parameters()

    def init_weights(self) -> None:
        """Initialise all parameters anew; OpenMMLab's modules call it instead of their own way,
        which would take the stacked kernels for one."""
        self.reset_parameters()

    def mix_kernels(self, coefficients: Tensor, position_scale: Tensor | None = None) -> Mixture:
        """The mixture with these weights of the kernels, shape ``(N, K)``."""
        dtype = self.weight.dtype
        return Mixture(
            coefficients.unsqueeze(1).to(dtype),
            self.weight,
            KernelLayout.whole(self.kernel_shape),
            None if position_scale is None else position_scale.to(dtype),
        )

    @property
    def mixing_operations(self) -> int:
        """``K`` times the size of the kernel."""
        return self.weight.numel()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        weight = tensor_of(state_dict, prefix + 'weight')
        # MMEngine loads non-strictly by default and would only log this mismatch.
        if weight is not None and weight.shape != self.weight.shape:
            raise ValueError(
                f'{prefix}weight of the checkpoint has shape {tuple(weight.shape)}, but the model '
                f'needs {tuple(self.weight.shape)} (kernels, output channels, input channels, ...)'
                f': a checkpoint of a plain network, or of another number of kernels, does not '
                f'fit; load one of a {type(self).__name__} network, or train from scratch'
            )
        if self.attention is not None:
            check_attention(self.attention, state_dict, prefix + 'attention.')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def method_repr(self) -> str:
        return f'num_kernels={self.num_kernels}'


class KernelBankConv2d(KernelBankLayer, DynamicConvNd):
    """Two-dimensional convolution with ``K`` kernels of its own."""

    plain_type = nn.Conv2d
