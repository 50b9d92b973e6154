"""The attention module and the contrasting-driven attention function (Section 3.4, Eq. 4)."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .partition import KernelPartition, Ratio, as_fraction

_MIN_HIDDEN = 16
_EPS = 1e-3


def contrasting_attention(logits: Tensor, beta: Tensor, temperature: Tensor) -> Tensor:
    r"""The contrasting-driven attention function (CAF).

    .. math::
        \alpha_{ij} = \tau \beta_{ij} +
            (1 - \tau) \frac{z_{ij}}{\sum_{p=1}^{n+1} |z_{ip}| + 10^{-3}} \qquad (4)

    The sum runs over the ``n`` cells and the zero cell, whose own attention is then dropped: a
    zero cell adds nothing to a mixture. The small constant is the released models'.

    Args:
        logits: ``z``, shape ``(N, m, n + 1)``, the last column being the zero cell.
        beta: 0 or 1, shape ``(m, n)``.
        temperature: ``tau`` in [0, 1], a tensor without dimensions.

    Returns:
        ``alpha``, shape ``(N, m, n)``, in at least float32.
    """
    normalised = logits[..., :-1] / normaliser(logits)[..., None]
    # lerp is exact at both ends: one-hot at temperature 1, untouched at 0.
    weight = temperature.to(normalised)
    return torch.lerp(normalised, beta.to(normalised).expand_as(normalised), weight)


def normaliser(logits: Tensor) -> Tensor:
    """The denominator of Eq. 4, ``(N, m, n + 1)`` to ``(N, m)``, in at least float32."""
    # Half precision would lose the sum over a hundred cells and more.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.abs().sum(dim=-1) + _EPS


class AttentionLinear(nn.Module):
    """A linear layer with the released initialisation: Kaiming normal over fan_out, bias 0.

    Not an ``nn.Linear``, because MMEngine's initialisers pick layers by the name of their class:
    a network's ``init_cfg`` for its own linear layers would overwrite the attentions.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f'{in_features}, {out_features}, bias={self.bias is not None}'


class KernelAttention(nn.Module):
    r"""Input-dependent attentions of one layer's linear mixtures over the warehouse's cells.

    Global average pool, linear, norm, ReLU, linear, CAF: the compact SE-type module of the
    paper's Appendix A.3.

    With ``basis_ratio`` (the released ResNet50 1/2x) only the layer's own cells and the zero
    cell get logits of their own. Those of the other cells are a linear map, shared by the
    layer's mixtures, of ``max(int((n - own) * basis_ratio), 16)`` basis values per mixture.

    Args:
        in_channels: channels of the layer's input, over all groups.
        partition: the layer's mixtures and cells.
        reduction: hidden width relative to ``in_channels``; it is at least 16.
            Defaults to 1/16.
        norm_layer: the hidden norm, a class of ``torch.nn`` by name or a callable that takes the
            width. Defaults to ``'BatchNorm1d'``.
        basis_ratio: see above. Defaults to ``None``, direct logits for all cells.

    Raises:
        ValueError: if ``reduction`` or ``basis_ratio`` is no positive number, ``norm_layer`` is
            unknown, or ``basis_ratio`` is given though no other layer shares the warehouse.
    """

    def __init__(
        self,
        in_channels: int,
        partition: KernelPartition,
        reduction: Ratio = 1 / 16,
        norm_layer: str | Callable[[int], nn.Module] = 'BatchNorm1d',
        basis_ratio: Ratio | None = None,
    ) -> None:
        super().__init__()
        m, n, own = partition.num_mixtures, partition.num_cells, partition.num_own_cells
        self.num_mixtures = m
        self.num_cells = n
        self.first_cell = partition.first_cell
        self.num_own_cells = own

        hidden = _width('reduction', in_channels, reduction)
        norm = _norm_layer(norm_layer)(hidden)
        is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
        self.fc1 = AttentionLinear(in_channels, hidden, bias=not is_batch_norm)
        self.norm = norm
        self.relu = nn.ReLU(inplace=True)
        if basis_ratio is None:
            self.fc2 = AttentionLinear(hidden, m * (n + 1))
            self.fc3 = None
        else:
            basis = _width('basis_ratio', n - own, basis_ratio)
            if n == own:
                raise ValueError(
                    f'basis_ratio={basis_ratio} needs cells of other layers, but this layer owns '
                    f'all {n} cells of its warehouse; drop basis_ratio or share the warehouse'
                )
            self.fc2 = AttentionLinear(hidden, m * (own + basis + 1), bias=False)
            self.fc3 = AttentionLinear(basis, n - own, bias=False)
            self.basis_bias = nn.Parameter(torch.zeros(m * (n + 1)))

        # A constant of the plan, hence not in checkpoints.
        beta = torch.zeros(m, n)
        for mixture, cell in enumerate(partition.initial_cells):
            if cell is not None:
                beta[mixture, cell] = 1
        self.register_buffer('beta', beta, persistent=False)

    def forward(self, pooled: Tensor, temperature: Tensor) -> Tensor:
        """Attentions for globally averaged inputs.

        Args:
            pooled: shape ``(N, in_channels)``.
            temperature: ``tau``, a tensor without dimensions.

        Returns:
            ``alpha``, shape ``(N, m, n)``, in at least float32.

        Raises:
            ValueError: if batch norm would have to train on a single sample.
        """
        logits = self.logits(self.hidden(pooled))
        return contrasting_attention(logits, self.beta, temperature)

    def hidden(self, pooled: Tensor) -> Tensor:
        """The hidden vectors for globally averaged inputs, shape ``(N, h)``.

        Raises:
            ValueError: if batch norm would have to train on a single sample.
        """
        is_batch_norm = isinstance(self.norm, nn.BatchNorm1d)
        if is_batch_norm and self.norm.training and len(pooled) == 1:
            raise ValueError(
                'the attention of a KW layer normalises over the batch and cannot train on a '
                'batch of 1 sample; use at least 2 samples per device, norm_eval=True, or '
                "norm_layer='LayerNorm' or 'SyncBatchNorm'"
            )
        return self.relu(self.norm(self.fc1(pooled)))

    def logits(self, hidden: Tensor) -> Tensor:
        """``z`` of Eq. 4, shape ``(N, m, n + 1)``: an affine map of hidden vectors."""
        logits = self.fc2(hidden).unflatten(1, (self.num_mixtures, -1))
        return logits if self.fc3 is None else self._expand_basis(logits)

    def _expand_basis(self, logits: Tensor) -> Tensor:
        """Rows of (own cells, basis, zero cell) -> rows of (all cells in order, zero cell)."""
        own, basis, zero = logits.split([self.num_own_cells, self.fc3.weight.shape[1], 1], dim=-1)
        others = self.fc3(basis)
        before, after = others.split([self.first_cell, others.shape[-1] - self.first_cell], dim=-1)
        bias = self.basis_bias.view(self.num_mixtures, self.num_cells + 1)
        return torch.cat([before, own, after, zero], dim=-1) + bias


def attention_parameters(
    in_channels: int,
    partition: KernelPartition,
    reduction: Ratio = 1 / 16,
    norm_layer: str | Callable[[int], nn.Module] = 'BatchNorm1d',
    basis_ratio: Ratio | None = None,
) -> int:
    """Count the parameters of a :class:`KernelAttention` with these arguments, building none.

    With ``h = max(int(in_channels * reduction), 16)`` hidden channels they are ``in_channels * h``
    (and ``h`` biases, unless the norm is batch norm), those of the norm, and ``(h + 1) m (n + 1)``.
    """
    hidden, fixed = hidden_and_fixed(in_channels, reduction, norm_layer)
    m, n, own = partition.num_mixtures, partition.num_cells, partition.num_own_cells
    if basis_ratio is None:
        return fixed + (hidden + 1) * m * (n + 1)
    basis = _width('basis_ratio', n - own, basis_ratio)
    return fixed + hidden * m * (own + basis + 1) + basis * (n - own) + m * (n + 1)


def hidden_and_fixed(
    in_channels: int, reduction: Ratio, norm_layer: str | Callable[[int], nn.Module]
) -> tuple[int, int]:
    """The hidden width, and the parameters that do not depend on mixtures and cells."""
    hidden = _width('reduction', in_channels, reduction)
    norm = _norm_layer(norm_layer)(hidden)
    bias = 0 if isinstance(norm, nn.modules.batchnorm._BatchNorm) else hidden
    return hidden, in_channels * hidden + bias + count_parameters(norm)


def _width(name: str, size: int, ratio: Ratio) -> int:
    """A part of ``size``, but no less than the minimum; ``name`` is that of the ratio."""
    return max(int(size * as_fraction(name, ratio)), _MIN_HIDDEN)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _norm_layer(norm_layer: str | Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    if callable(norm_layer):
        return norm_layer
    found = getattr(nn, norm_layer, None) if isinstance(norm_layer, str) else None
    if found is None:
        raise ValueError(
            f"norm_layer must be a norm of torch.nn, such as 'BatchNorm1d', 'SyncBatchNorm' or "
            f"'LayerNorm', or a callable that takes the width, but got {norm_layer!r}"
        )
    return found
