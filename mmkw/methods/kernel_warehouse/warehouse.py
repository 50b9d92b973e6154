"""A warehouse: the kernel cells that layers share, and the temperature of their attentions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bank import BankModule
from ..loaded import tensor_of
from ..temperature import AnnealedModule, TemperatureRange
from .partition import KernelPartition, WarehousePartition


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
