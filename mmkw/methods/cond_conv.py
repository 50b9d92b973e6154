r"""Conditionally parameterised convolution, CondConv (Yang et al., NeurIPS 2019).

.. math:: y = \Big(\sum_{k=1}^K r_k \mathbf{W}_k\Big) * x, \qquad r = \sigma(R \bar x + b)

with routing weights :math:`r` of the pooled input :math:`\bar x`. Layers of a block may share one
routing, that of the block's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..arguments import checks_arguments
from ..ops.mixing import Mixture
from .base import AttentionLinear, DynamicLinear, IntOrTuple
from .kernel_bank import KernelBankConv2d, KernelBankLayer
from .registry import Method, register_method


class CondRouting(nn.Module):
    """Routing weights of the experts: linear with bias, sigmoid.

    Args:
        in_channels: over all groups.
        num_kernels: ``K``, the number of experts.
    """

    def __init__(self, in_channels: int, num_kernels: int) -> None:
        super().__init__()
        self.fc = AttentionLinear(in_channels, num_kernels)

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        self.fc.reset_parameters()

    def forward(self, pooled: Tensor) -> Tensor:
        """Routing weights for the pooled input, ``(N, in_channels)`` to ``(N, K)``."""
        return self.fc(pooled).sigmoid()


class _CondLayer(KernelBankLayer):
    _routed_by: list[_CondLayer] | None = None
    _shares_routing = False
    _routing_weights: Tensor | None = None

    def _set_up(self, num_kernels: int, device, dtype) -> None:
        self.add_kernels(num_kernels, device, dtype)
        self.attention = CondRouting(self.attention_channels, num_kernels).to(device, dtype)

    def follow(self, leader: _CondLayer) -> None:
        """Use the routing weights of another layer, which runs before this one in each forward.

        Raises:
            ValueError: if the layers have different numbers of experts.
        """
        if leader.num_kernels != self.num_kernels:
            raise ValueError(
                f'{self.title()} has {self.num_kernels} experts, but {leader.title()}, whose '
                f'routing it shall use, {leader.num_kernels}; give them the same number'
            )
        self.attention = None
        # In a list, as the leader must not become a submodule.
        self._routed_by = [leader]
        leader._shares_routing = True

    def mix(self, pooled: Tensor) -> Mixture:
        if self._routed_by is None:
            weights = self.attention(pooled)
            self._routing_weights = weights if self._shares_routing else None
            return self.mix_kernels(weights)
        weights = self._routed_by[0]._routing_weights
        if weights is None or weights.shape[0] != pooled.shape[0]:
            raise RuntimeError(
                f'{self.title()} uses the routing of {self._routed_by[0].title()}, which has not '
                f'run on this batch; run the layers in the order of the block'
            )
        return self.mix_kernels(weights)

    def __getstate__(self) -> dict:
        # Weights of the last batch belong to its graph, which cannot be copied.
        return {**self.__dict__, '_routing_weights': None}


class CondConv2d(_CondLayer, KernelBankConv2d):
    """CondConv: each sample's kernel is a sum of ``K`` experts by sigmoid routing weights.

    Args:
        in_channels, ..., dtype: all arguments as in ``nn.Conv2d``; the bias is static.
        num_kernels: ``K``, the number of experts. Defaults to 8.

    Raises:
        ValueError: if ``num_kernels`` is not a positive integer.
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
        num_kernels: int = 8,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._set_up(num_kernels, device, dtype)


class CondLinear(_CondLayer, DynamicLinear):
    """The linear case of :class:`CondConv2d`, for classifiers.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``; the bias is static.
        num_kernels: ``K``, the number of experts. Defaults to 8.

    Raises:
        ValueError: if ``num_kernels`` is not a positive integer.
    """

    @checks_arguments()
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        num_kernels: int = 8,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(num_kernels, device, dtype)


def share_routing(layers: Sequence[_CondLayer]) -> None:
    """Let the layers of a block, in the order in which they run, use the routing of the first."""
    leader, *others = layers
    for layer in others:
        layer.follow(leader)


@register_method
@dataclass(frozen=True)
class CondConv(Method):
    """CondConv in the places of plain layers; the options are those of :class:`CondConv2d`.

    Attributes:
        share_routing_in: names of modules, such as blocks, whose layers share the routing of the
            first one. Defaults to none.
    """

    layers = {0: CondLinear, 2: CondConv2d}
    of_network = ('share_routing_in',)
    shares = 'routing'

    num_kernels: int = 8
    share_routing_in: Sequence[str] = ()
