"""The temperature of attentions: a buffer of each module that has one, with its method's range."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import is_number

_numbers = itertools.count()


@dataclass(frozen=True)
class TemperatureRange:
    """The temperatures that a method knows.

    Attributes:
        low, high: the smallest and the largest valid one.
        learned: the one at which attentions are what was learned, for inference and fine-tuning.
        meaning: the range in words, for error messages.
        plain: the one at which the network is a plain one, whatever its attentions are; ``None``
            if the method has none.
    """

    low: float
    high: float
    learned: float
    meaning: str
    plain: float | None = None

    def check(self, name: str, value: float) -> float:
        """Return ``value`` if it is a temperature of this method.

        Raises:
            ValueError: if it is not a number in the range. ``name`` says what it was meant for.
        """
        if not is_number(value) or not self.contains(value):
            raise ValueError(f'{name} must be {self.meaning}, but got {value!r}')
        return value

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


class AnnealedModule(nn.Module):
    """A module whose attentions follow a temperature.

    The temperature is part of the state dict, so that a checkpoint from the middle of annealing
    evaluates as it trained. Checkpoints without it load strictly and mean the learned temperature.

    Attributes:
        temperature: buffer without dimensions; the learned temperature when new.
        temperature_range: class attribute, see :class:`TemperatureRange`.
        loaded_temperature: the temperature that came with the weights; ``None`` while they are
            as initialised.
        awaits_annealing: whether plain kernels were cut into cells while loading, and nothing has
            set the temperature since then.
        origin: a number of the module that its deep copies share, such as those in averages.
    """

    temperature: Tensor
    temperature_range: TemperatureRange
    loaded_temperature: float | None = None
    awaits_annealing = False

    def __init__(self) -> None:
        super().__init__()
        self.origin = next(_numbers)
        self.register_buffer('temperature', torch.tensor(float(self.temperature_range.learned)))

    def set_temperature(self, value: float) -> None:
        """Fill in a temperature that is known to be in the range. Waits for no device."""
        self.temperature.fill_(value)
        self.awaits_annealing = False

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + 'temperature'
        # Released checkpoints hold no temperature: they are at the end of their annealing.
        if any(name.startswith(prefix) for name in state_dict):
            learned = torch.tensor(float(self.temperature_range.learned))
            state_dict.setdefault(key, learned)
        found = state_dict.get(key)
        if isinstance(found, Tensor) and not found.is_meta and found.numel() == 1:
            value = self.temperature_range.check(f'{key} of the checkpoint', found.item())
            self.loaded_temperature = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def annealed_modules(model: nn.Module) -> list[AnnealedModule]:
    """All modules of a model that follow a temperature.

    Raises:
        ValueError: if there are none, or if they are of methods with different temperatures.
    """
    found = [module for module in model.modules() if isinstance(module, AnnealedModule)]
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no layers with a temperature; use dynamic layers, such '
            f'as KWConv2d, or remove what sets their temperature'
        )
    if len({module.temperature_range for module in found}) > 1:
        kinds = sorted({type(module).__name__ for module in found})
        raise ValueError(
            f'{type(model).__name__} mixes methods whose temperatures mean different things '
            f'({", ".join(kinds)}); use one of them in a model'
        )
    return found


def temperature_range(model: nn.Module) -> TemperatureRange:
    """The valid temperatures of a model.

    Raises:
        ValueError: see :func:`annealed_modules`.
    """
    return annealed_modules(model)[0].temperature_range


def set_temperature(model: nn.Module, value: float) -> None:
    """Set the temperature in all layers of ``model``.

    Waits for no device, so it may be called in every iteration.

    Raises:
        ValueError: if ``value`` is outside the range of the model's method (KernelWarehouse: from
            0 to 1), or see :func:`annealed_modules`.
    """
    modules = annealed_modules(model)
    modules[0].temperature_range.check('temperature', value)
    for module in modules:
        module.set_temperature(value)


def get_temperature(model: nn.Module) -> float:
    """The temperature of ``model``. Reads it from the device, so it waits for queued work.

    Raises:
        ValueError: if layers differ in their temperature, or see :func:`annealed_modules`.
    """
    values = {module.temperature.item() for module in annealed_modules(model)}
    if len(values) > 1:
        raise ValueError(
            f'the layers of {type(model).__name__} have different temperatures '
            f'{sorted(values)}; call set_temperature(model, value) to set them all'
        )
    return values.pop()
