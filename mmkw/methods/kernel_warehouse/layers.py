"""A warehouse of kernel cells, and the layers that mix their kernels from it for every input."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from ...arguments import checks_arguments
from ...ops.mixing import Mixture
from ...ops.routes import dynamic_conv
from ..bank import BankModule
from ..base import DynamicConvNd, DynamicLinear, IntOrTuple
from ..loaded import check_attention, tensor_of, wrong_kernel
from ..temperature import AnnealedModule, TemperatureRange
from .attention import AttentionConfig, AttentionOptions, KernelAttention
from .folding import FoldableLayer
from .partition import (
    CellRatio,
    KernelPartition,
    Ratio,
    WarehousePartition,
    partition_kernels,
)

_WAY_TO_ANNEAL = (
    'anneal the temperature with KWTemperatureHook, or call mmkw.set_temperature before each '
    'iteration'
)


class Warehouse(BankModule, AnnealedModule):
    """The parameters that the linear mixtures of one or more layers mix.

    Attributes:
        cells: parameter, shape ``(n, c_out, c_in, *spatial)``.
        temperature: buffer without dimensions, ``tau`` of Eq. 4; 0 when new.
        partition: the kernels that share the cells.
    """

    temperature_range = TemperatureRange(
        low=0,
        high=1,
        learned=0,
        meaning='a number in [0, 1], from learned attentions (0) to one-to-one (1)',
        plain=1,
    )

    def __init__(self, partition: WarehousePartition, device=None, dtype=None) -> None:
        super().__init__()
        self.partition = partition
        self.cells = nn.Parameter(
            torch.empty(partition.num_cells, *partition.cell_shape, device=device, dtype=dtype)
        )
        self.temperature = self.temperature.to(device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all cells anew, and set the temperature to 0."""
        self.temperature.fill_(self.temperature_range.learned)
        self.loaded_temperature, self.awaits_annealing = None, False
        for kernel in self.partition.kernels.values():
            self.reset_cells(kernel)

    @torch.no_grad()
    def reset_cells(self, partition: KernelPartition) -> None:
        """Initialise one layer's own cells as a single Kaiming-normal (fan_out) tensor."""
        own = self.cells.narrow(0, partition.first_cell, partition.num_own_cells)
        if own.numel():
            nn.init.kaiming_normal_(own.flatten(0, 1), mode='fan_out', nonlinearity='relu')

    def forward(self) -> Tensor:
        """Return the cells.

        Layers call the warehouse for them, so that hooks which compute the cells, such as those of
        ``torch.nn.utils.prune``, run in every forward.
        """
        return self.cells

    @torch.no_grad()
    def start_from_plain(self, kernel: Tensor, partition: KernelPartition) -> None:
        """Put the blocks of a plain kernel into the cells that its mixtures start from.

        The temperature becomes 1, at which the layer computes what the plain one did.

        Args:
            kernel: of the shape that ``partition`` says.
            partition: of one of the layers that use this warehouse; every mixture starts from a
                cell.
        """
        blocks = partition.cut(kernel, self.cells.shape[1:])
        self.cells[list(partition.initial_cells)] = blocks.to(self.cells)
        self.temperature.fill_(self.temperature_range.plain)
        self.awaits_annealing = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.awaits_annealing and prefix + 'cells' not in state_dict:
            # The layers have been loaded before, from plain kernels.
            state_dict[prefix + 'cells'] = self.cells.detach()
            state_dict[prefix + 'temperature'] = self.temperature
        else:
            self.awaits_annealing = False
        cells = tensor_of(state_dict, prefix + 'cells')
        # MMEngine loads non-strictly by default and would only log this mismatch.
        if cells is not None and cells.shape != self.cells.shape:
            raise ValueError(
                f'{prefix}cells of the checkpoint has shape {tuple(cells.shape)}, but the model '
                f'needs {tuple(self.cells.shape)} (cells, output channels, input channels, ...): '
                f'it is of another depth, budget or cell ratio; build the model with those of '
                f'the checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        n, *shape = self.cells.shape
        return f'{n} cells of {"x".join(map(str, shape))}'


class KWLayer(FoldableLayer):
    """What KW convolutions and linear layers have in common: a warehouse and an attention.

    Attributes:
        warehouse: the cells and the temperature; a submodule where the layer owns it.
        partition: the layer's mixtures and own cells; ``None`` before a plan gave it a warehouse.
        attention: computes ``alpha`` of Eq. 4; ``None`` before a plan gave the layer a warehouse.
    """

    partition: KernelPartition | None = None

    def set_up_warehouse(
        self,
        budget: Ratio,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        attention: AttentionOptions = None,
        allocation: str = 'one_to_one',
        device=None,
        dtype=None,
    ) -> None:
        """Give the layer a warehouse of its own, as a submodule.

        Args:
            budget: ``b``; the warehouse has ``b * m`` cells.
            cell_ratio, spatial_partition, allocation: see :func:`partition_kernels`.
            attention: see :class:`AttentionConfig`.
            device, dtype: of the parameters.
        """
        name = type(self).__name__
        partition = partition_kernels(
            {name: self.kernel_shape}, budget, cell_ratio, spatial_partition, allocation
        )
        self.warehouse = Warehouse(partition, device, dtype)
        self._set_partition(partition.kernels[name], AttentionConfig.of(attention))
        self.attention.to(device, dtype)

    def share_warehouse(
        self, warehouse: Warehouse, partition: KernelPartition, attention: AttentionOptions = None
    ) -> None:
        """Draw on a warehouse that another module owns, with a new attention.

        Args:
            warehouse: holds the cells and the temperature.
            partition: this layer's mixtures and own cells.
            attention: see :class:`AttentionConfig`.
        """
        self._modules.pop('warehouse', None)
        # A plain attribute, not a submodule: a state dict must hold shared cells only once.
        object.__setattr__(self, 'warehouse', warehouse)
        self._set_partition(partition, AttentionConfig.of(attention))

    def _set_partition(self, partition: KernelPartition, config: AttentionConfig) -> None:
        self.partition = partition
        self.unfold_attention()
        self.attention = KernelAttention(self.attention_channels, partition, config)

    def reset_parameters(self) -> None:
        """Initialise bias, attention and the layer's own cells anew."""
        self.unfold_attention()
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.attention is not None:
            self.attention.reset_parameters()
            self.warehouse.reset_cells(self.partition)

    @property
    def awaits_plan(self) -> bool:
        return self.partition is None

    def mix(self, pooled: Tensor) -> Mixture:
        """The mixture of cells (Eq. 1 and 4), with ODConv's factors if there are ``od_heads``."""
        if self.attention is None:
            raise RuntimeError(
                f'{self} has no warehouse yet: apply a plan that names it '
                f'(mmkw.networks.apply_plan), or give it a budget of its own'
            )
        if self.training and self.warehouse.awaits_annealing:
            raise RuntimeError(
                f'{self.title()} started from a plain kernel of the checkpoint, cut into cells, '
                f'and nothing anneals the temperature, so its attention would never be used; '
                f'{_WAY_TO_ANNEAL}'
            )
        cells = self.warehouse()
        factors = self.attention(pooled, self.warehouse.temperature)
        alpha, position_scale, *channel_scales = factors
        if position_scale is not None:
            position_scale = position_scale.to(cells.dtype)
        return Mixture(
            alpha.to(cells.dtype), cells, self.partition, position_scale, *channel_scales
        )

    def convolve(self, x: Tensor, pooled: Tensor, **geometry) -> Tensor:
        if self.basis is not None:
            return self.convolve_folded(x, pooled, **geometry)
        return dynamic_conv(x, self.mix(pooled), self.bias, **geometry)

    @property
    def mixing_operations(self) -> int:
        """``m * n`` times the size of a cell; ``m * (h + 1)`` times where attentions are folded."""
        if self.is_folded:
            return self.basis.numel()
        return self.partition.num_mixtures * self.warehouse.cells.numel()

    def __getattr__(self, name: str):
        if name == 'weight':
            raise AttributeError(
                f'{self.title()} has no weight to read: its forward mixes another kernel for '
                f'every input. A layer of which the network reads the weight has to stay plain; '
                f'leave it out of the plan'
            )
        return super().__getattr__(name)

    def check_plain_kernel(self, name: str) -> None:
        """Refuse to start from a plain kernel if no cells make this layer the plain one.

        Args:
            name: of the kernel in the checkpoint.

        Raises:
            ValueError: if the layer has no warehouse yet, or options by which it differs from the
                plain one at temperature 1, too.
        """
        if self.partition is None:
            raise ValueError(f'{self} has no warehouse yet for {name} of the checkpoint')
        if missing := self.partition.initial_cells.count(None):
            blocks = self.partition.num_mixtures
            difference = f'of a budget below 1, in which {missing} of {blocks} blocks have no cell'
        elif self.partition.allocation != 'one_to_one':
            difference = f'with allocation={self.partition.allocation!r}, not one cell per block'
        elif self.attention.channel_fc is not None:
            difference = 'with od_heads, which scale the kernel at every temperature'
        else:
            return
        raise ValueError(
            f'the checkpoint holds a plain kernel, {name}, where the model has a '
            f'KernelWarehouse layer {difference}; choose a budget of at least 1 without these '
            f'options, load the checkpoint of a KernelWarehouse network, or train from scratch'
        )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.partition is not None:
            check_attention(self.attention, state_dict, prefix + 'attention.')
        kernel = tensor_of(state_dict, prefix + 'weight')
        if kernel is not None:
            del state_dict[prefix + 'weight']
            self._start_from_plain(kernel, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _start_from_plain(self, kernel: Tensor, state_dict, prefix) -> None:
        """Take the plain kernel of a checkpoint as cells."""
        self.check_plain_kernel(f'{prefix}weight')
        shape = self.kernel_shape
        # Linear layers and 1 x 1 convolutions may stand for each other.
        if kernel.numel() != math.prod(shape) or tuple(kernel.shape[:2]) != tuple(shape[:2]):
            raise wrong_kernel(f'{prefix}weight', kernel, shape)
        self.warehouse.start_from_plain(kernel.reshape(shape), self.partition)
        self.attention.start_one_to_one()
        warnings.warn(
            f'The checkpoint holds plain kernels, which were cut into cells. The temperature is '
            f'1, at which the network is the plain one; to train it, {_WAY_TO_ANNEAL}.',
            stacklevel=2,
        )
        # They have no part in the output yet, and the plain network has none.
        for name, value in self.attention.state_dict(prefix=f'{prefix}attention.').items():
            state_dict.setdefault(name, value)

    def method_repr(self) -> str:
        if self.partition is None:
            return 'no warehouse yet'
        return f'm={self.partition.num_mixtures}, n={self.partition.num_cells}'


class _KWConvNd(KWLayer, DynamicConvNd):
    """Convolution of each sample with its own kernel, mixed from a warehouse.

    Stride, padding (also ``'same'``), dilation, groups, bias and padding mode are those of the
    plain convolution, and so are the shapes. A batch dimension is required. The bias is static.

    Args:
        in_channels, ..., dtype: all arguments as in the plain convolution.
        budget: ``b``, the cells of the layer's own warehouse per linear mixture. ``None`` leaves
            the layer to a plan, see :func:`apply_plan`. Defaults to 1.
        cell_ratio: cell channels relative to the kernel's, one number or (output, input).
            Defaults to ``None``: 1 if the budget is at least 1, otherwise 1/2.
        spatial_partition: whether a cell covers one spatial position or all. Defaults to True.
        attention: options of the attention, see :class:`AttentionConfig`, such as
            ``dict(reduction=1/16, norm_layer='BatchNorm1d')``, the defaults.
        allocation: which cells mixtures start from, see :func:`partition_kernels`. Defaults to
            ``'one_to_one'``.

    Raises:
        ValueError: at construction if channels, budget and cell ratio do not fit; when
            loading a plain kernel of another shape, or for a budget below 1.
        RuntimeError: when called before a plan gave it a warehouse; in training if it was loaded
            from a plain kernel and nothing has set the temperature since then.
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
        budget: Ratio | None = 1,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        attention: AttentionOptions = None,
        allocation: str = 'one_to_one',
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if budget is not None:
            self.set_up_warehouse(
                budget, cell_ratio, spatial_partition, attention, allocation, device, dtype
            )


class KWConv1d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    plain_type = nn.Conv1d


class KWConv2d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    plain_type = nn.Conv2d


class KWConv3d(_KWConvNd):
    __doc__ = _KWConvNd.__doc__
    plain_type = nn.Conv3d


class KWLinear(KWLayer, DynamicLinear):
    """Linear layer that multiplies each sample's tokens by its own weight, mixed from a warehouse.

    The 1-d case of the convolutions over the flattened token axes; the attention sees the mean
    over a sample's tokens. The first axis is always the batch: an input of shape
    ``(N, in_features)`` is ``N`` samples of one token each, not one sample of ``N`` tokens.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
        budget, cell_ratio, spatial_partition, attention, allocation: as in :class:`KWConv2d`.

    Raises:
        ValueError, RuntimeError: as :class:`KWConv2d`.
    """

    @checks_arguments()
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        budget: Ratio | None = 1,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        attention: AttentionOptions = None,
        allocation: str = 'one_to_one',
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if budget is not None:
            self.set_up_warehouse(
                budget, cell_ratio, spatial_partition, attention, allocation, device, dtype
            )


# By the number of spatial dimensions; 0 for linear layers.
KW_LAYERS: dict[int, type[KWLayer]] = {0: KWLinear, 1: KWConv1d, 2: KWConv2d, 3: KWConv3d}
