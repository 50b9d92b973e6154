r"""Dynamic convolution decomposition, DCD (Li et al., ICLR 2021).

.. math:: \mathbf{W}(x) = \Lambda(x) \mathbf{W}_0 + \mathbf{P} \Phi(x) \mathbf{Q}^T

A static kernel whose output channels are scaled, and a residual through ``L`` latent channels that
a dynamic matrix :math:`\Phi` mixes. As in the authors' code, both parts are computed apart, with
batch norms between :math:`\mathbf{Q}`, :math:`\Phi` and :math:`\mathbf{P}`:

.. math::
    y = \lambda \odot (\mathbf{W}_0 * x) + \mathbf{P} * \big(\mathrm{BN}(\Phi q) + q\big), \qquad
    q = \mathrm{BN}(\mathbf{Q} * x)

The residual grows with the square of its input, as both :math:`\Phi` and ``q`` grow with it. Only
the batch norms keep it small. Until they have seen training batches, a deep network can overflow in
evaluation mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import checks_arguments
from ..ops.convolution import CONVOLUTIONS
from ..ops.mixing import scale_maps
from ..ops.routes import add_bias
from .base import AttentionLinear, DynamicConvNd, DynamicLayer, DynamicLinear, IntOrTuple
from .registry import Method, register_method

_CLASSIFIER_LATENT = 32


def hard_sigmoid(x: Tensor) -> Tensor:
    """``relu6(x + 3) / 3``, between 0 and 2: 1 at 0, so that scales start around 1."""
    return F.relu6(x + 3) / 3


class DCDAttention(nn.Module):
    r"""The dynamic matrix and the scales, from pooled features ``f``.

    .. math:: u = \mathbf{S} f, \quad u' = u \odot \mathrm{hsig}(\mathbf{G} u), \quad
        \Phi = \mathbf{F} u', \quad \lambda = \mathrm{hsig}(\mathbf{A} u')

    with linear layers without bias.

    Args:
        features: size of ``f``.
        hidden: size of ``u``.
        latent: ``L``; the dynamic matrix is ``L x L``.
        out_channels: number of scales.
    """

    def __init__(self, features: int, hidden: int, latent: int, out_channels: int) -> None:
        super().__init__()
        self.latent = latent
        self.squeeze = AttentionLinear(features, hidden, bias=False)
        self.gate = AttentionLinear(hidden, hidden, bias=False)
        self.phi = AttentionLinear(hidden, latent * latent, bias=False)
        self.scale = AttentionLinear(hidden, out_channels, bias=False)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for child in self.children():
            child.reset_parameters()

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """``Phi``, shape ``(N, L, L)``, and the scales, ``(N, out_channels)``."""
        hidden = self.squeeze(pooled)
        hidden = hidden * hard_sigmoid(self.gate(hidden))
        phi = self.phi(hidden).unflatten(1, (self.latent, self.latent))
        return phi, hard_sigmoid(self.scale(hidden))


class _DCDLayer(DynamicLayer):
    has_kernels = False  # There are batch norms between the residual's convolutions.

    def _set_up(self, latent: int, features: int, hidden: int, device, dtype) -> None:
        out_channels, in_channels = self.kernel_shape[:2]
        factory = dict(device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(self._weight_shape(), **factory))
        self.q = nn.Parameter(torch.empty(latent, in_channels, **factory))
        self.p = nn.Parameter(torch.empty(out_channels, latent, **factory))
        self.q_norm = nn.BatchNorm1d(latent, **factory)
        self.phi_norm = nn.BatchNorm1d(latent, **factory)
        self.attention = DCDAttention(features, hidden, latent, out_channels).to(device, dtype)
        self._reset_own()

    def _weight_shape(self) -> tuple[int, ...]:
        return tuple(self.kernel_shape)

    @torch.no_grad()
    def _reset_own(self) -> None:
        for parameter in (self.weight, self.q, self.p):
            nn.init.kaiming_normal_(parameter, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialise kernel, residual, norms, bias and attention anew."""
        self._reset_own()
        for module in (self.q_norm, self.phi_norm, self.attention):
            module.reset_parameters()

    def init_weights(self) -> None:
        """Initialise all parameters anew; OpenMMLab's modules call it instead of their own way."""
        self.reset_parameters()

    def convolve(self, x: Tensor, pooled: tuple[Tensor, Tensor], **geometry) -> Tensor:
        features, seen = pooled
        self.check_batch_norm(self.q_norm, seen.shape[0] * seen.shape[2])
        phi, scale = self.attention(features)
        conv = CONVOLUTIONS[x.dim() - 2]
        y = scale_maps(conv(x, self.weight.view(self.kernel_shape), **geometry), scale)
        y = y + self.residual(seen, phi).reshape(y.shape)
        return y if self.bias is None else add_bias(y, self.bias)

    def residual(self, x: Tensor, phi: Tensor) -> Tensor:
        """``P (BN(Phi q) + q)`` of ``(N, in_channels, positions)``."""
        # Convolutions rather than products, whose memory layout torch.compile does not know.
        q = self.q_norm(F.conv1d(x, self.q.to(x.dtype).unsqueeze(-1)))
        mixed = self.phi_norm(phi.to(q.dtype).bmm(q)) + q
        return F.conv1d(mixed, self.p.to(mixed.dtype).unsqueeze(-1))

    @property
    def mixing_operations(self) -> int:
        """0: no kernel is mixed; see :meth:`convolve`."""
        return 0

    def method_repr(self) -> str:
        return f'latent={self.attention.latent}'


class DCDConv2d(_DCDLayer, DynamicConvNd):
    r"""Dynamic convolution decomposition.

    With ``C`` input channels, the latent channels are :math:`L = \lfloor\sqrt{4C}\rfloor`. The
    attention sees the input averaged to 2 x 2 positions, ``4 C`` features, through
    :math:`\max(\lfloor\max(4C, L^2) / 16\rfloor, 4)` hidden ones.

    Args:
        in_channels, ..., dtype: all but ``groups`` as in ``nn.Conv2d``; the bias is static.
        groups: 1, as the residual has no groups.

    Raises:
        ValueError: if there are groups, or if the padding is not such that the output has
            ``ceil(size / stride)`` positions, those that the residual has.
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
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if groups != 1:
            raise ValueError(
                f'DCDConv2d has no groups, but got groups={groups}; leave grouped convolutions out'
            )
        covered = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
        if padding != 'same' and (
            padding == 'valid'
            and any(covered)
            or padding != 'valid'
            and any(2 * p != c for p, c in zip(self.padding, covered))
        ):
            raise ValueError(
                f'DCDConv2d needs a padding that keeps the positions of its input (half of '
                f'dilation x (kernel_size - 1)), but got padding={padding!r} with '
                f'kernel_size={self.kernel_size} and dilation={self.dilation}'
            )
        latent = math.isqrt(4 * in_channels)
        hidden = max(max(4 * in_channels, latent * latent) // 16, 4)
        self._set_up(latent, 4 * in_channels, hidden, device, dtype)

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input averaged to 2 x 2 positions, and the pixels that the residual sees."""
        seen = x[..., :: self.stride[0], :: self.stride[1]]
        return F.adaptive_avg_pool2d(x, 2).flatten(1), seen.flatten(2)


class DCDLinear(_DCDLayer, DynamicLinear):
    """The linear case of :class:`DCDConv2d`, for classifiers, with 32 latent and hidden channels.

    The attention sees the input itself.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
    """

    @checks_arguments()
    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(_CLASSIFIER_LATENT, in_features, _CLASSIFIER_LATENT, device, dtype)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the tokens, and the tokens."""
        return x.mean(-1), x


@register_method
@dataclass(frozen=True)
class DCD(Method):
    """DCD in the places of plain layers; it has no options."""

    layers = {0: DCDLinear, 2: DCDConv2d}
