"""Convolutions and linear layers that mix their kernels from a warehouse for every input."""

from __future__ import annotations

import copy
import math
from typing import Callable, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .assembly import assemble_kernels, dynamic_conv, folded_conv, is_transformed
from .attention import KernelAttention, normaliser
from .lean import fold
from .partition import CellRatio, KernelPartition, Ratio, partition_kernels
from .warehouse import Warehouse

IntOrTuple = Union[int, tuple[int, ...]]
NormLayer = Union[str, Callable[[int], nn.Module]]


class _KWLayer(nn.Module):
    """What KW convolutions and linear layers have in common: a warehouse and an attention.

    Args:
        in_channels: channels of the input, over all groups.
        kernel_shape: ``(out_channels, in_channels / groups, *kernel_size)``.
        bias: whether to add a static bias, initially 0.
        budget: ``b``; the layer then owns a warehouse of ``b * m`` cells, as a submodule.
            ``None`` leaves the layer to a plan, see :func:`apply_plan`.
        cell_ratio: cell channels relative to the kernel's, see :func:`partition_kernels`.
        spatial_partition: see :func:`partition_kernels`.
        reduction, norm_layer: see :class:`KernelAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_shape: tuple[int, ...],
        bias: bool,
        budget: Ratio | None,
        cell_ratio: CellRatio,
        spatial_partition: bool,
        reduction: Ratio,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.kernel_shape = kernel_shape
        self._attention_in_channels = in_channels
        self.bias = nn.Parameter(torch.zeros(kernel_shape[0])) if bias else None
        self.attention: KernelAttention | None = None
        self.partition: KernelPartition | None = None
        self._name: str | None = None
        self.register_buffer('basis', None, persistent=False)
        self._folded_versions: dict[int, int] = {}
        if budget is not None:
            name = type(self).__name__
            partition = partition_kernels(
                {name: kernel_shape}, budget, cell_ratio, spatial_partition
            )
            self.warehouse = Warehouse(partition)
            self._set_partition(partition.kernels[name], reduction=reduction, norm_layer=norm_layer)

    def share_warehouse(
        self, warehouse: Warehouse, partition: KernelPartition, name: str, **attention_options
    ) -> None:
        """Draw on a warehouse that another module owns, with a new attention.

        Args:
            warehouse: holds the cells and the temperature.
            partition: this layer's mixtures and own cells.
            name: the layer's name in the network, for error messages.
            attention_options: ``reduction``, ``norm_layer`` and ``basis_ratio`` of
                :class:`KernelAttention`.
        """
        self._modules.pop('warehouse', None)
        # A plain attribute, not a submodule: a state dict must hold shared cells only once.
        object.__setattr__(self, 'warehouse', warehouse)
        self._name = name
        self._set_partition(partition, **attention_options)

    def _set_partition(self, partition: KernelPartition, **attention_options) -> None:
        self.partition = partition
        self.unfold_attention()
        self.attention = KernelAttention(
            self._attention_in_channels, partition, **attention_options
        )

    def _mix(self, pooled: Tensor) -> tuple[Tensor, Tensor, KernelPartition]:
        """Attentions for the pooled input, with the cells that they weight."""
        if self.attention is None:
            raise self._no_warehouse()
        cells = self.warehouse.cells
        attention = self.attention(pooled, self.warehouse.temperature)
        return attention.to(cells.dtype), cells, self.partition

    def _convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        """Convolve with the kernels for the pooled input, and add the bias."""
        if self.basis is None:
            return dynamic_conv(x, *self._mix(pooled), self.bias, **geometry)
        if not is_transformed():
            self._check_folded()
        hidden = self.attention.hidden(pooled)
        scale = normaliser(self.attention.logits(hidden)).reciprocal()
        coefficients = F.pad(hidden, (1, 0), value=1.0)
        return folded_conv(
            x, coefficients.to(self.basis.dtype), scale.to(self.basis.dtype), self.basis,
            self.partition, self.bias, **geometry,
        )  # fmt: skip

    @torch.inference_mode(False)  # Gradients of the input may be asked for later.
    @torch.no_grad()
    def fold_attention(self) -> None:
        r"""Mix the cells beforehand along the hidden channels of the attention, for inference.

        Before normalisation the logits are an affine map of the hidden vector ``h``, and the
        normaliser ``s_i`` is one number for each mixture. At temperature 0 therefore

        .. math::
            \mathbf{w}_i = \frac{1}{s_i} \Big(\mathbf{g}_{i0} + \sum_k h_k \mathbf{g}_{ik}\Big),
            \qquad \mathbf{g}_{ik} = \sum_j F_{ijk} \mathbf{e}_j

        with constant ``g``: mixtures of ``h + 1`` tensors instead of ``n`` cells, equal to
        rounding, for ``h + 1`` times the memory of the kernel. ``train()`` ends it.

        Raises:
            RuntimeError: if the layer is in training mode or has no warehouse yet.
            ValueError: if the temperature is not 0.
        """
        if self.training:
            raise RuntimeError(
                f'{self._title()} is in training mode, where its cells change; call '
                f'model.eval() before its attention is folded'
            )
        if self.attention is None:
            raise self._no_warehouse()
        temperature = self.warehouse.temperature.item()
        if temperature != 0:
            raise ValueError(
                f'attentions can be folded at temperature 0 only, but {self._title()} is at '
                f'{temperature:g}; finish the annealing, or call set_temperature(model, 0)'
            )
        attention, cells = copy.deepcopy(self.attention).double(), self.warehouse.cells
        constant = attention.logits(attention.fc2.weight.new_zeros(1, self.num_hidden))
        slopes = attention.logits(torch.eye(self.num_hidden).to(constant)) - constant
        weights = torch.cat([constant, slopes])[..., :-1].to(cells.dtype)
        self.basis = fold(weights, cells, self.partition, getattr(self, 'groups', 1))
        self._folded_versions = self._versions()

    def unfold_attention(self) -> None:
        """Mix the warehouse's cells again for every input."""
        self.basis = None

    @property
    def num_hidden(self) -> int:
        """``h``, the width of the attention's hidden vector."""
        return self.attention.fc2.weight.shape[1]

    def train(self, mode: bool = True) -> _KWLayer:
        if mode:
            self.unfold_attention()
        return super().train(mode)

    def _versions(self) -> dict[int, int]:
        """How often PyTorch saw the tensors change that a basis is made of."""
        tensors = [self.warehouse.cells, self.warehouse.temperature, *self.attention.parameters()]
        return {id(tensor): tensor._version for tensor in tensors if not tensor.is_inference()}

    def _check_folded(self) -> None:
        # Copies, and buffers that moved to another device, are other tensors with counts anew.
        then = self._folded_versions
        if any(now > then.get(tensor, now) for tensor, now in self._versions().items()):
            raise RuntimeError(
                f'the weights or the temperature of {self._title()} changed after its attention '
                f'was folded; call fold_attentions(model) again, or unfold_attentions(model)'
            )

    def _title(self) -> str:
        return type(self).__name__ if self._name is None else f'layer {self._name!r}'

    def _no_warehouse(self) -> RuntimeError:
        return RuntimeError(
            f'{self} has no warehouse yet: apply a plan that names it '
            f'(mmkw.kernel_warehouse.apply_plan), or give it a budget of its own'
        )

    def __getattr__(self, name: str):
        if name == 'weight':
            raise AttributeError(
                f'{self._title()} has no weight to read: its forward mixes another kernel for '
                f'every input. A layer of which the network reads the weight has to stay plain; '
                f'leave it out of the plan'
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Non-strict loading, MMEngine's default, would leave the layer with random cells.
        if prefix + 'weight' in state_dict:
            raise ValueError(
                f'the checkpoint holds a plain kernel, {prefix}weight, where the model has a '
                f'KernelWarehouse layer; convert it for this config with '
                f'tools/model_converters/plain_to_mmkw.py (budgets of at least 1), load a '
                f'checkpoint of a KW model, or remove init_cfg or load_from to train from scratch'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _extra_repr(self) -> str:
        if self.partition is None:
            return 'no warehouse yet'
        return f'm={self.partition.num_mixtures}, n={self.partition.num_cells}'


class _KWConvNd(_KWLayer):
    """Convolution of each sample with its own kernel, mixed from a warehouse.

    Stride, padding (also ``'same'``), dilation, groups, bias and padding mode are those of the
    plain convolution, and so are the shapes; a batch dimension is required. The bias is static.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode: as in the plain convolution.
        budget: ``b``, the cells of the layer's own warehouse per linear mixture. ``None`` leaves
            the layer to a plan, see :func:`apply_plan`. Defaults to 1.
        cell_ratio: cell channels relative to the kernel's, one number or (output, input).
            Defaults to ``None``: 1 if the budget is at least 1, otherwise 1/2.
        spatial_partition: whether a cell covers one spatial position or all. Defaults to True.
        reduction: hidden width of the attention relative to ``in_channels``. Defaults to 1/16.
        norm_layer: norm of the attention, a class of ``torch.nn`` by name or a callable that
            takes the width. Defaults to ``'BatchNorm1d'``.

    Raises:
        ValueError: at construction if channels, budget and cell ratio do not fit; in training if
            batch norm would see a single sample.
        RuntimeError: when called before a plan gave it a warehouse.
    """

    _plain: type[nn.modules.conv._ConvNd]

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
        budget: Ratio | None = 1,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        reduction: Ratio = 1 / 16,
        norm_layer: NormLayer = 'BatchNorm1d',
    ) -> None:
        # The plain layer checks the arguments and brings them into one form.
        plain = self._plain(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device='meta',
        )  # fmt: skip
        super().__init__(
            in_channels, tuple(plain.weight.shape), bias, budget, cell_ratio, spatial_partition,
            reduction, norm_layer,
        )  # fmt: skip
        for name in plain.__constants__:
            setattr(self, name, getattr(plain, name))
        self.transposed = False
        # Padding other than zeros, or an uneven one, is applied before the convolution.
        self._pad_first = padding_mode != 'zeros' or padding == 'same'
        self._pad_widths = tuple(plain._reversed_padding_repeated_twice)
        self._conv_padding = self.padding
        if self._pad_first or padding == 'valid':
            self._conv_padding = (0,) * len(self.kernel_size)

    @classmethod
    def replacing(cls, conv: nn.Module) -> _KWConvNd:
        """A layer of the geometry of ``conv`` that waits for a plan."""
        return cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, budget=None,
        )  # fmt: skip

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels assembled for ``x``, ``(N, out_channels, in_channels / groups, *size)``."""
        self._check_input(x)
        return assemble_kernels(*self._mix(x.flatten(2).mean(-1)))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, in_channels, *size)`` to ``(N, out_channels, *out_size)``."""
        self._check_input(x)
        return self._convolve(
            self._pad(x), x.flatten(2).mean(-1), stride=self.stride, padding=self._conv_padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip

    def _pad(self, x: Tensor) -> Tensor:
        """Apply the padding that the convolution itself does not."""
        if not self._pad_first:
            return x
        mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
        return F.pad(x, self._pad_widths, mode=mode)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 2 + len(self.kernel_size) or x.shape[1] != self.in_channels:
            sizes = ', '.join(['N', str(self.in_channels), *'DHW'[-len(self.kernel_size) :]])
            raise ValueError(
                f'{type(self).__name__} expects input of shape ({sizes}), but got {tuple(x.shape)}'
            )

    def extra_repr(self) -> str:
        return f'{self._plain.extra_repr(self)}, {self._extra_repr()}'


class KWConv1d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    _plain = nn.Conv1d


class KWConv2d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    _plain = nn.Conv2d


class KWConv3d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    _plain = nn.Conv3d


class KWLinear(_KWLayer):
    """Linear layer that multiplies each sample's tokens by its own weight, mixed from a warehouse.

    The 1-d case of the convolutions over the flattened token axes; the attention sees the mean
    over a sample's tokens.

    Args:
        in_features, out_features, bias: as in ``nn.Linear``.
        budget, cell_ratio, spatial_partition, reduction, norm_layer: as in :class:`KWConv2d`.

    Raises:
        ValueError, RuntimeError: as :class:`KWConv2d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        budget: Ratio | None = 1,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        reduction: Ratio = 1 / 16,
        norm_layer: NormLayer = 'BatchNorm1d',
    ) -> None:
        super().__init__(
            in_features, (out_features, in_features, 1), bias, budget, cell_ratio,
            spatial_partition, reduction, norm_layer,
        )  # fmt: skip
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def replacing(cls, linear: nn.Linear) -> KWLinear:
        """A layer of the size of ``linear`` that waits for a plan."""
        return cls(linear.in_features, linear.out_features, linear.bias is not None, budget=None)

    def kernels(self, x: Tensor) -> Tensor:
        """The weights assembled for ``x``, shape ``(N, out_features, in_features)``."""
        return assemble_kernels(*self._mix(self._tokens(x).mean(1))).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *, in_features)`` to ``(N, *, out_features)``."""
        tokens = self._tokens(x)
        y = self._convolve(tokens.transpose(1, 2), tokens.mean(1)).transpose(1, 2)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _tokens(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-1] != self.in_features:
            raise ValueError(
                f'KWLinear expects input of shape (N, ..., {self.in_features}), but got '
                f'{tuple(x.shape)}'
            )
        # Not with -1, which an empty batch leaves undefined.
        return x.reshape(len(x), math.prod(x.shape[1:-1]), self.in_features)

    def extra_repr(self) -> str:
        return f'{nn.Linear.extra_repr(self)}, {self._extra_repr()}'
