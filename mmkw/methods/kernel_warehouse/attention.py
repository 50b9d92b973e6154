"""The attention module and the contrasting-driven attention function (Section 3.4, Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Callable, NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import check_names
from ...meta_device import on_meta_device
from ...ops.attention import check_function, mixture_attention
from ..base import AttentionLinear, normalise_hidden
from .partition import KernelPartition, Ratio, as_fraction

NormLayer = Union[str, Callable[[int], nn.Module]]

_MIN_HIDDEN = 16
SCOPES = ('warehouse', 'mixture')
_NORMS_OF_MAPS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class AttentionConfig:
    """The options of the attentions of one or more layers.

    Wherever one is expected, a mapping of its arguments will do: ``attention=dict(reduction=1/8)``.

    Attributes:
        reduction: hidden width relative to the layer's input channels. The width is at least 16.
            Defaults to 1/16.
        norm_layer: the norm of the hidden vector: a class of ``torch.nn`` by name, a callable that
            takes the width, or, in a config of OpenMMLab, the ``norm_cfg`` of a network, such as
            ``dict(type='SyncBN')`` or ``dict(type='GN', num_groups=4)``; ``'BN'`` is then the batch
            norm of vectors. In training batch norm uses its running statistics for a batch
            of a single sample; with such batches throughout, or many copies of an image in a
            batch, choose ``'LayerNorm'``. Defaults to ``'BatchNorm1d'``.
        basis_ratio: size of the non-local basis (the released ResNet50 1/2x). Only the layer's own
            cells and the zero cell then get logits of their own. Those of the other cells are a
            linear map, shared by the layer's mixtures, of
            ``max(int((n - own) * basis_ratio), 16)`` basis values per mixture. Defaults to
            ``None``: all cells get logits of their own.
        function: the second term of Eq. 4, see :mod:`mmkw.ops.attention`:
            ``'caf'``, ``'softmax'``, ``'sigmoid'`` or ``'nonnegative'`` (Table 8). The zero cell is
            among the logits and then dropped. Defaults to ``'caf'``.
        scope: the cells that a mixture can use: ``'warehouse'``, all, or ``'mixture'``, only the
            ``b`` that it starts from (Table 6, without sharing). Defaults to ``'warehouse'``.
        od_heads: whether to add ODConv's attentions, from the same hidden vector: sigmoids over
            input channels, output channels and, for kernels of more than one position, positions
            (Table 17). Defaults to False.

    Raises:
        ValueError: if ``reduction`` or ``basis_ratio`` is not a positive number, ``norm_layer``,
            ``function`` or ``scope`` is unknown, or both ``basis_ratio`` and the scope
            ``'mixture'`` are given; when a layer is built, if the norm is one of maps or cannot
            have the width.
    """

    reduction: Ratio = 1 / 16
    norm_layer: NormLayer = 'BatchNorm1d'
    basis_ratio: Ratio | None = None
    function: str = 'caf'
    scope: str = 'warehouse'
    od_heads: bool = False

    def __post_init__(self) -> None:
        as_fraction('reduction', self.reduction)
        if self.basis_ratio is not None:
            as_fraction('basis_ratio', self.basis_ratio)
        self._norm_factory()
        check_function(self.function)
        if self.scope not in SCOPES:
            raise ValueError(f'scope must be one of {SCOPES}, but got {self.scope!r}')
        if self.scope == 'mixture' and self.basis_ratio is not None:
            raise ValueError(
                f'basis_ratio={self.basis_ratio} is for cells of other layers, which the scope '
                f"'mixture' does not use; drop one of the two"
            )

    @classmethod
    def of(cls, options: AttentionOptions, **defaults) -> AttentionConfig:
        """Read what stands for one: itself, a mapping of its arguments, or ``None``.

        Args:
            options: see above.
            defaults: arguments for what a mapping leaves out.

        Raises:
            ValueError: if an argument is unknown or invalid.
        """
        if options is None:
            return cls(**defaults)
        if isinstance(options, cls):
            return options
        known = [field.name for field in fields(cls)]
        if not isinstance(options, Mapping):
            raise ValueError(
                f'attention must be a mapping with some of {", ".join(known)}, but got {options!r}'
            )
        check_names('attention', options, known, 'option')
        return cls(**{**defaults, **options})

    def hidden_width(self, in_channels: int) -> int:
        """``h``, for a layer with these input channels."""
        return _width(in_channels, self.reduction)

    def basis_width(self, num_others: int) -> int:
        """Basis values per mixture, for a warehouse with this many cells of other layers."""
        return _width(num_others, self.basis_ratio)

    def norm(self, width: int) -> nn.Module:
        """A new norm of the hidden vector."""
        try:
            norm = self._norm_factory()(width)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'norm_layer={self.norm_layer!r} does not suit the {width} channels of an '
                f'attention: {error}'
            ) from error
        if isinstance(norm, _NORMS_OF_MAPS):
            raise ValueError(
                f'norm_layer={self.norm_layer!r} is a norm of maps, but the hidden vector of an '
                f"attention has no positions; choose 'BatchNorm1d' or 'LayerNorm'"
            )
        return norm

    def _norm_factory(self) -> Callable[[int], nn.Module]:
        norm_layer = self.norm_layer
        if callable(norm_layer):
            return norm_layer
        found = getattr(nn, norm_layer, None) if isinstance(norm_layer, str) else None
        if found is None:
            raise ValueError(
                f"norm_layer must be a norm of torch.nn, such as 'BatchNorm1d', 'SyncBatchNorm' or "
                f"'LayerNorm', a callable that takes the width, or in conv_cfg and "
                f'backbones of OpenMMLab a norm_cfg with its type, but got {norm_layer!r}'
            )
        return found

    def build_on_meta(self, in_channels: int, partition: KernelPartition) -> KernelAttention:
        """A :class:`KernelAttention` without memory, to count its parameters."""
        with on_meta_device():
            return KernelAttention(in_channels, partition, self)


AttentionOptions = Union[AttentionConfig, Mapping[str, Any], None]


class MixtureFactors(NamedTuple):
    """What an attention computes for a batch.

    Attributes:
        alpha: Eq. 4, shape ``(N, m, n)``, in at least float32.
        position_scale, input_scale, output_scale: ODConv's attentions over positions, input and
            output channels (Table 17), see :class:`~mmkw.ops.Mixture`. ``None`` without
            ``od_heads``.
    """

    alpha: Tensor
    position_scale: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None


class KernelAttention(nn.Module):
    r"""Input-dependent attentions of one layer's linear mixtures over the warehouse's cells.

    Global average pool, linear, norm, ReLU, linear, CAF: the compact SE-type module of the
    paper's Appendix A.3.

    Args:
        in_channels: channels of the layer's input, over all groups.
        partition: the layer's mixtures and cells.
        config: see :class:`AttentionConfig`.

    Raises:
        ValueError: if there is a ``basis_ratio`` though no other layer shares the warehouse.
    """

    def __init__(
        self, in_channels: int, partition: KernelPartition, config: AttentionConfig
    ) -> None:
        super().__init__()
        m, n, own = partition.num_mixtures, partition.num_cells, partition.num_own_cells
        self.partition = partition
        self.function = config.function
        self.scope = config.scope
        hidden = config.hidden_width(in_channels)
        norm = config.norm(hidden)
        self.fc1 = AttentionLinear(in_channels, hidden, bias=_has_bias_before(norm))
        self.norm = norm
        self.relu = nn.ReLU(inplace=True)
        self.fc3 = None
        if self.scope == 'mixture':
            self.fc2 = AttentionLinear(hidden, m * (cells_of_each_mixture(partition) + 1))
        elif config.basis_ratio is None:
            self.fc2 = AttentionLinear(hidden, m * (n + 1))
        else:
            if n == own:
                raise ValueError(
                    f'basis_ratio={config.basis_ratio} needs cells of other layers, but this layer '
                    f'owns all {n} cells of its warehouse; drop basis_ratio or share the warehouse'
                )
            basis = config.basis_width(n - own)
            self.fc2 = AttentionLinear(hidden, m * (own + basis + 1), bias=False)
            self.fc3 = AttentionLinear(basis, n - own, bias=False)
            self.basis_bias = nn.Parameter(torch.zeros(m * (n + 1)))
        self.channel_fc = self.filter_fc = self.spatial_fc = None
        if config.od_heads:
            positions = math.prod(partition.kernel_shape[2:])
            self.channel_fc = AttentionLinear(hidden, in_channels)
            self.filter_fc = AttentionLinear(hidden, partition.kernel_shape[0])
            if positions > 1:
                self.spatial_fc = AttentionLinear(hidden, positions)
        # A constant of the plan, hence not in checkpoints.
        self.register_buffer('beta', torch.zeros(m, n), persistent=False)
        self.reset_beta()

    @torch.no_grad()
    def reset_beta(self) -> None:
        """Write the initial mixtures of the plan into ``beta``."""
        pairs = self.partition.initial_pairs
        self.beta.zero_()
        if pairs:
            mixtures, cells = torch.tensor(pairs, device=self.beta.device).t()
            self.beta[mixtures, cells] = 1

    @torch.no_grad()
    def start_one_to_one(self) -> None:
        r"""Have the logits be the initial mixtures of the plan, whatever the input.

        The last weights become 0 and their bias :math:`\beta`, so that :math:`\alpha` is
        :math:`\beta` at every temperature (up to the constant in Eq. 4, a thousandth) until the
        attention learns something else. (That is so for CAF; other functions start from their
        values of 1 and 0.) Kernels that were trained as a plain network's so stay as they are
        while the temperature falls. Random logits would mix all the cells into them. Training goes
        on from there, too, but ended at a lower accuracy, see :func:`mmkw.checkpoints.warm_start`.
        """
        self.fc2.weight.zero_()
        bias = self.fc2.bias if self.fc3 is None else self.basis_bias
        beta = self._own(self.beta) if self.scope == 'mixture' else self.beta
        bias.view(len(beta), -1).copy_(F.pad(beta, (0, 1)))

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for child in self.children():
            if hasattr(child, 'reset_parameters'):
                child.reset_parameters()
        if self.fc3 is not None:
            nn.init.zeros_(self.basis_bias)

    def _apply(self, fn, *args, **kwargs) -> KernelAttention:
        was_meta = self.beta.is_meta
        super()._apply(fn, *args, **kwargs)
        # `to_empty` leaves buffers that no checkpoint holds without values.
        if was_meta and not self.beta.is_meta:
            self.reset_beta()
        return self

    def forward(self, pooled: Tensor, temperature: Tensor) -> MixtureFactors:
        """All attentions for globally averaged inputs.

        Args:
            pooled: shape ``(N, in_channels)``.
            temperature: ``tau``, a tensor without dimensions.
        """
        hidden, beta = self.hidden(pooled), self.beta
        if self.partition.allocation == 'none':
            temperature = torch.zeros_like(temperature)
        if self.scope == 'mixture':
            beta = self._own(beta)
        alpha = mixture_attention(self.logits(hidden), beta, temperature, self.function)
        if self.scope == 'mixture':
            alpha = self._spread(alpha)
        if self.channel_fc is None:
            return MixtureFactors(alpha)
        heads = (self.spatial_fc, self.channel_fc, self.filter_fc)
        return MixtureFactors(
            alpha, *(None if head is None else head(hidden).sigmoid() for head in heads)
        )

    def _own(self, attention: Tensor) -> Tensor:
        """Of each mixture's attentions those for the cells that it starts from, ``(..., m, b)``."""
        return attention.gather(-1, self._own_cells(attention).expand(*attention.shape[:-1], -1))

    def _spread(self, own: Tensor) -> Tensor:
        """The inverse of :meth:`_own`, with 0 for all other cells."""
        alpha = own.new_zeros(*own.shape[:-1], self.partition.num_cells)
        return alpha.scatter(-1, self._own_cells(own).expand_as(own), own)

    def _own_cells(self, like: Tensor) -> Tensor:
        each = cells_of_each_mixture(self.partition)
        cells = torch.arange(self.partition.num_mixtures * each, device=like.device)
        return self.partition.first_cell + cells.view(-1, each)

    def hidden(self, pooled: Tensor) -> Tensor:
        """The hidden vectors for globally averaged inputs, shape ``(N, h)``."""
        return self.relu(normalise_hidden(self.norm, self.fc1(pooled)))

    def logits(self, hidden: Tensor) -> Tensor:
        """``z`` of Eq. 4, shape ``(N, m, n + 1)``: an affine map of hidden vectors."""
        logits = self.fc2(hidden).unflatten(1, (len(self.beta), -1))
        return logits if self.fc3 is None else self._expand_basis(logits)

    def _expand_basis(self, logits: Tensor) -> Tensor:
        """Rows of (own cells, basis, zero cell) -> rows of (all cells in order, zero cell)."""
        first, own = self.partition.first_cell, self.partition.num_own_cells
        own, basis, zero = logits.split([own, self.fc3.weight.shape[1], 1], dim=-1)
        others = self.fc3(basis)
        before, after = others.split([first, others.shape[-1] - first], dim=-1)
        bias = self.basis_bias.view(self.partition.num_mixtures, self.partition.num_cells + 1)
        return torch.cat([before, own, after, zero], dim=-1) + bias


def cells_of_each_mixture(partition: KernelPartition) -> int:
    """``b``, for attentions of the scope ``'mixture'``.

    Raises:
        ValueError: if the budget is not a whole number.
    """
    each, rest = divmod(partition.num_own_cells, partition.num_mixtures)
    if rest or not each:
        raise ValueError(
            f"scope='mixture' needs a whole budget of at least 1, but {partition.num_mixtures} "
            f'mixtures have {partition.num_own_cells} cells of their own'
        )
    return each


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _width(size: int, ratio: Ratio) -> int:
    """A part of ``size``, but no less than the minimum."""
    return max(int(size * as_fraction('ratio', ratio)), _MIN_HIDDEN)


def _has_bias_before(norm: nn.Module) -> bool:
    """Whether the linear layer before the norm has a bias, as in the release."""
    return not isinstance(norm, nn.modules.batchnorm._BatchNorm)
