"""A warehouse: the kernel cells that layers share, and the temperature of their attentions."""

from __future__ import annotations

from numbers import Real

import torch
from torch import nn

from .partition import KernelPartition, WarehousePartition


class Warehouse(nn.Module):
    """The parameters that the linear mixtures of one or more layers mix.

    The temperature is part of the state, so that a checkpoint from the middle of annealing
    evaluates as it trained. Checkpoints that hold cells but no temperature, such as released
    ones, load strictly and mean 0.

    Attributes:
        cells: parameter, shape ``(n, c_out, c_in, *spatial)``.
        temperature: buffer without dimensions, ``tau`` of Eq. 4; 0 when new.
    """

    def __init__(self, partition: WarehousePartition) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.empty(partition.num_cells, *partition.cell_shape))
        self.register_buffer('temperature', torch.zeros(()))
        for kernel in partition.kernels.values():
            self.reset_cells(kernel)

    @torch.no_grad()
    def reset_cells(self, partition: KernelPartition) -> None:
        """Initialise one layer's own cells as a single Kaiming-normal (fan_out) tensor."""
        own = self.cells.narrow(0, partition.first_cell, partition.num_own_cells)
        if own.numel():
            nn.init.kaiming_normal_(own.flatten(0, 1), mode='fan_out', nonlinearity='relu')

    def _apply(self, fn, *args, **kwargs) -> Warehouse:
        # Cells are no maps, though ``network.to(memory_format=torch.channels_last)`` would take
        # them for such by their number of dimensions.
        def apply(tensor: torch.Tensor) -> torch.Tensor:
            return fn(tensor.flatten(1)).view(tensor.shape) if tensor.dim() > 3 else fn(tensor)

        return super()._apply(apply, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        cells = state_dict.get(prefix + 'cells')
        if cells is not None:
            # MMEngine loads non-strictly by default and would only log this mismatch.
            if cells.shape != self.cells.shape:
                raise ValueError(
                    f'{prefix}cells of the checkpoint has shape {tuple(cells.shape)}, but the '
                    f'model needs {tuple(self.cells.shape)} (cells, output channels, input '
                    f'channels, ...): it is of another depth, budget or cell ratio; set those '
                    f'of the checkpoint in the config'
                )
            state_dict.setdefault(prefix + 'temperature', torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        n, *shape = self.cells.shape
        return f'{n} cells of {"x".join(map(str, shape))}'


def warehouses(model: nn.Module) -> list[Warehouse]:
    """All warehouses of a model.

    Raises:
        ValueError: if it has none.
    """
    found = [module for module in model.modules() if isinstance(module, Warehouse)]
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no KernelWarehouse layers, so it has no temperature; '
            f"use a KW backbone such as type='KWResNet', or drop the KW hooks from the config"
        )
    return found


def check_temperature(name: str, value: float) -> float:
    """Return ``value`` if it is a temperature.

    Raises:
        ValueError: if it is not a number in [0, 1]. ``name`` says what it was meant for.
    """
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(
            f'{name} must be a number in [0, 1], from learned attentions (0) to one-to-one (1), '
            f'but got {value!r}'
        )
    return value


def set_temperature(model: nn.Module, value: float) -> None:
    """Set the temperature ``tau`` of Eq. 4 in every warehouse of ``model``.

    Waits for no device: it may be called in every iteration.

    Raises:
        ValueError: if ``value`` is not in [0, 1] or the model has no warehouse.
    """
    check_temperature('temperature', value)
    for warehouse in warehouses(model):
        warehouse.temperature.fill_(value)


def get_temperature(model: nn.Module) -> float:
    """The temperature of ``model``. Reads it from the device, so it waits for queued work.

    Raises:
        ValueError: if the model has no warehouse, or its warehouses differ in temperature.
    """
    values = {warehouse.temperature.item() for warehouse in warehouses(model)}
    if len(values) > 1:
        raise ValueError(
            f'the warehouses of {type(model).__name__} have different temperatures '
            f'{sorted(values)}; call set_temperature(model, value) to set them all'
        )
    return values.pop()
