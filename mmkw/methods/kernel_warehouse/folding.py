r"""Attentions folded into the cells, layer by layer, for faster inference of large warehouses.

Before normalisation the logits are an affine map of the attention's hidden vector ``h``, and the
normaliser ``s_i`` is one number for each mixture. At temperature 0 therefore

.. math::
    \mathbf{w}_i = \frac{1}{s_i} \Big(\mathbf{g}_{i0} + \sum_k h_k \mathbf{g}_{ik}\Big),
    \qquad \mathbf{g}_{ik} = \sum_j F_{ijk} \mathbf{e}_j

with constant ``g``: mixtures of ``h + 1`` tensors instead of ``n`` cells, equal to rounding, for
``h + 1`` times the memory of the kernel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import is_number
from ...ops.attention import normaliser
from ...ops.convolution import MIN_ROWS, blocks, convolve_blocks, divisor, rows_per_block
from ...ops.mixing import KernelLayout
from ...ops.routes import add_bias, is_forced, kernel_conv, recording_mode
from ..base import DynamicLayer
from ..temperature import AnnealedModule
from .attention import KernelAttention
from .partition import KernelPartition

# Enough to notice any change of weights that is not made on purpose to go unnoticed.
_NUM_SAMPLES = 64


class FoldableLayer(DynamicLayer):
    """A layer whose attention can be folded into the cells.

    A folded layer notices when what it was folded from changes, also in copies and by writes
    that PyTorch does not count, and folds anew. It refuses to compute if the temperature is not 0.

    Attributes:
        attention: the layer's attention, ``None`` before a plan gave it one.
        partition: its mixtures and cells.
        warehouse: holds the cells and the temperature.
        basis: ``g`` of a folded layer, see :func:`fold_cells`; ``None`` if it is not folded.
    """

    attention: KernelAttention | None
    partition: KernelPartition | None
    warehouse: AnnealedModule
    basis: Tensor | None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer('basis', None, persistent=False)
        self._fold_source: tuple[list[tuple[int, int]], list[Tensor]] | None = None

    @property
    def is_folded(self) -> bool:
        return self.basis is not None

    @property
    def num_hidden(self) -> int:
        """``h``, the width of the attention's hidden vector."""
        return self.attention.fc2.weight.shape[1]

    def fold_attention(self) -> None:
        """Mix the cells beforehand along the hidden channels of the attention, for inference.

        ``train()`` and :meth:`unfold_attention` end it. Checkpoints do not change.

        Raises:
            RuntimeError: if the layer is in training mode or has no warehouse yet.
            ValueError: if the temperature is not 0.
        """
        if self.attention is None:
            raise RuntimeError(f'{self} has no warehouse yet, so there is nothing to fold')
        if self.training:
            raise RuntimeError(
                f'{self.title()} is in training mode, where its cells change; call '
                f'model.eval() before its attention is folded'
            )
        attention = self.attention
        if attention.function != 'caf' or attention.scope != 'warehouse' or attention.channel_fc:
            raise ValueError(
                f"only attentions with function='caf', scope='warehouse' and no od_heads can be "
                f'folded, but those of {self.title()} are others'
            )
        self._fold()

    @torch.inference_mode(False)  # Gradients of the input may be asked for later.
    @torch.no_grad()
    def _fold(self) -> None:
        temperature = self.warehouse.temperature.item()
        if temperature != 0:
            raise ValueError(
                f'attentions can be folded at temperature 0 only, but {self.title()} is at '
                f'{temperature:g}; finish the annealing, call set_temperature(model, 0), or '
                f'unfold_attentions(model)'
            )
        attention, cells = copy.deepcopy(self.attention).double(), self.warehouse()
        constant = attention.logits(attention.fc2.weight.new_zeros(1, self.num_hidden))
        slopes = attention.logits(torch.eye(self.num_hidden).to(constant)) - constant
        weights = torch.cat([constant, slopes])[..., :-1].to(cells.dtype)
        self.basis = fold_cells(weights, cells, self.groups)
        self._fold_source = self._versions(), self._samples()

    def unfold_attention(self) -> None:
        """Mix the warehouse's cells again for every input."""
        self.basis = None
        self._fold_source = None

    def train(self, mode: bool = True) -> FoldableLayer:
        if mode:
            self.unfold_attention()
        return super().train(mode)

    def convolve_folded(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        """As ``convolve``, with the kernels of :func:`assemble_folded`."""
        self._refresh_fold()
        hidden = self.attention.hidden(pooled)
        scale = normaliser(self.attention.logits(hidden)).squeeze(-1).reciprocal()
        coefficients = F.pad(hidden, (1, 0), value=1.0)
        return folded_conv(
            x, coefficients.to(self.basis.dtype), scale.to(self.basis.dtype), self.basis,
            self.partition, self.bias, **geometry,
        )  # fmt: skip

    def _refresh_fold(self) -> None:
        """Fold anew if what the basis was made of is not what it was."""
        if recording_mode() is not None:
            return
        versions, samples = self._fold_source
        is_same = versions == self._versions()
        # Writes through `.data` are not counted; MMEngine swaps weights with averages that way.
        if is_same:
            pairs = zip(samples, self._samples())
            is_same = all(then.dtype == now.dtype and then.equal(now) for then, now in pairs)
        if not is_same:
            self._fold()

    def _sources(self) -> list[Tensor]:
        warehouse = self.warehouse
        return [*warehouse.parameters(), *warehouse.buffers(), *self.attention.parameters()]

    def _versions(self) -> list[tuple[int, int]]:
        """Which tensors the sources are, and how often PyTorch saw them change."""
        return [
            (id(tensor), -1 if tensor.is_inference() else tensor._version)
            for tensor in self._sources()
        ]

    @torch.no_grad()
    def _samples(self) -> list[Tensor]:
        """Some values of each source."""
        samples = []
        for tensor in self._sources():
            values = tensor.detach().flatten()
            samples.append(values[:: max(len(values) // _NUM_SAMPLES, 1)].clone())
        return samples


def fold_attentions(model: nn.Module, min_saving: float = 4) -> dict[str, int]:
    """Fold the attentions of the layers where it saves most, for inference.

    A layer then mixes ``h + 1`` tensors of its own instead of the ``n`` cells of its warehouse.
    The outputs are the same to rounding. The price is memory, ``h + 1`` times that of the layer's
    kernel. Checkpoints do not change. ``model.train()`` and :func:`unfold_attentions` end it.

    Args:
        model: in eval mode and at temperature 0.
        min_saving: fold layers with at least so many cells for each of the ``h + 1`` tensors.
            Defaults to 4. Infinity folds none, 0 all.

    Returns:
        The bytes that each folded layer takes in addition, by name.

    Raises:
        ValueError: if the model has no KernelWarehouse layers, its temperature is not 0, or
            ``min_saving`` is negative.
        RuntimeError: if a layer is in training mode.
    """
    if not is_number(min_saving) or min_saving < 0:
        raise ValueError(f'min_saving must be a number of at least 0, but got {min_saving!r}')
    layers = _foldable_layers(model)
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no KernelWarehouse layers, so there are no attentions to '
            f'fold'
        )
    added = {}
    for name, layer in layers.items():
        if layer.partition.num_cells >= min_saving * (layer.num_hidden + 1):
            layer.fold_attention()
            added[name] = layer.basis.numel() * layer.basis.element_size()
    return added


def unfold_attentions(model: nn.Module) -> None:
    """Let all layers mix the cells of their warehouses again."""
    for layer in _foldable_layers(model).values():
        layer.unfold_attention()


def _foldable_layers(model: nn.Module) -> dict[str, FoldableLayer]:
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, FoldableLayer) and m.attention is not None}


def fold_cells(weights: Tensor, cells: Tensor, groups: int) -> Tensor:
    """Mix the cells by constant weights, in blocks of rows, for :func:`assemble_folded`.

    Args:
        weights: shape ``(k, m, n)``.
        cells: shape ``(n, c_out, c_in, *spatial)``.
        groups: of the convolution.

    Returns:
        Shape ``(blocks, k, m, rows, c_in, *spatial)``.
    """
    c_out = cells.shape[1]
    rows = divisor(c_out, MIN_ROWS) if groups == 1 else c_out
    row_blocks = cells.unflatten(1, (-1, rows)).transpose(0, 1).flatten(2)
    mixed = weights.flatten(0, 1).expand(len(row_blocks), -1, -1).bmm(row_blocks)
    return mixed.view(-1, *weights.shape[:2], rows, *cells.shape[2:])


def assemble_folded(
    coefficients: Tensor, scale: Tensor, basis: Tensor, layout: KernelLayout
) -> Tensor:
    r"""Mix every sample's kernel from a basis of the layer's own.

    .. math::
        \mathbf{w}_i = s_i \sum_k c_k \mathbf{g}_{ik}

    Args:
        coefficients: ``c``, shape ``(N, k)``.
        scale: ``s``, shape ``(N, m)``.
        basis: ``g``, from :func:`fold_cells`.
        layout: where the layer's mixtures stand in its kernel.

    Returns:
        Kernels of shape ``(N, out_channels, in_channels / groups, *kernel_size)``.
    """
    blocks, _, m, rows, c_in, *spatial = basis.shape
    mixtures = coefficients.expand(blocks, -1, -1).bmm(basis.flatten(2))
    mixtures = mixtures.view(blocks, -1, m, rows * c_in * math.prod(spatial)) * scale[..., None]
    mixtures = mixtures.movedim(0, 2).reshape(-1, m, blocks * rows, c_in, *spatial)
    return layout.place(mixtures, mixtures.shape[2:])


def folded_conv(
    x: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    basis: Tensor,
    layout: KernelLayout,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """As :func:`~mmkw.ops.dynamic_conv`, with the kernels of :func:`assemble_folded`."""
    is_recorded = recording_mode() is not None or is_forced('unfolded')
    if is_recorded or is_forced('reference') or x.shape[0] == 0:
        kernels = assemble_folded(coefficients, scale, basis, layout)
        return kernel_conv(x, kernels, bias, stride, padding, dilation, groups)
    num_blocks, _, m, num_rows = basis.shape[:4]

    def assemble(samples: slice, rows: slice) -> Tensor:
        if rows.stop - rows.start > num_rows:
            return assemble_folded(coefficients[samples], scale[samples], basis, layout)
        mixtures = coefficients[samples].mm(basis[rows.start // num_rows].flatten(1))
        mixtures = mixtures.unflatten(1, (m, -1)) * scale[samples, :, None]
        return layout.place(mixtures, basis.shape[3:])

    c_out = num_blocks * num_rows
    takes_rows = rows_per_block(x, c_out, layout, groups) < c_out
    parts = blocks(x, c_out, layout, groups, num_rows if takes_rows else c_out)
    geometry = (stride, padding, dilation)
    y = convolve_blocks(x, assemble, parts, c_out, layout, groups, geometry)
    return y if bias is None else add_bias(y, bias)
