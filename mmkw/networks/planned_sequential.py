"""Networks that are an ``nn.Sequential``, with warehouses beside their layers."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn


class _PlannedSequential(nn.Sequential):
    """What a sequential network with ``warehouses`` does otherwise than its class.

    The warehouses are a child, so that they move, train and are saved with the network, but no
    layer of the sequence.
    """

    plain_type: type[nn.Sequential]

    def _layers(self) -> dict[str, nn.Module]:
        return {name: m for name, m in self._modules.items() if name != 'warehouses'}

    def __len__(self) -> int:
        return len(self._layers())

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._layers().values())

    def __getitem__(self, index):
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._layers().items())[index]))
        return super().__getitem__(index)

    def __reduce_ex__(self, protocol):
        # The class is made at run time; a copy or a pickle names the one that it was made from.
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new, (self.plain_type,), *state)


def keep_out_of_sequence(network: nn.Module) -> None:
    """Leave ``len``, indices and iteration of a sequential network as before its warehouses."""
    if isinstance(network, nn.Sequential) and not isinstance(network, _PlannedSequential):
        plain_type: Any = type(network)
        network.__class__ = _planned_type(plain_type)


@functools.cache
def _planned_type(plain_type: Any) -> Any:
    names = dict(
        plain_type=plain_type,
        __doc__=plain_type.__doc__,
        __module__=plain_type.__module__,
        __qualname__=plain_type.__qualname__,
    )
    return type(plain_type.__name__, (_PlannedSequential, plain_type), names)


def _new(plain_type: Any) -> nn.Sequential:
    planned_type = _planned_type(plain_type)
    return planned_type.__new__(planned_type)
