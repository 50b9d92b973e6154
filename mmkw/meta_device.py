"""Building models for their names and shapes alone, without memory for their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Models read rates of drop paths and initial values from these, so they need memory.
_WITH_VALUES = (torch.linspace, torch.arange, torch.tensor)
# Without effect on the meta device, where PyTorch takes a millisecond for each.
_INITIALISATION = (Tensor.normal_, Tensor.uniform_)


class _Shapes(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _INITIALISATION and args[0].is_meta:
            return args[0]
        if func in _WITH_VALUES:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Put the parameters of models that are built within on the meta device.

    What models read values from while they are built stays on the CPU: sequences of numbers, and
    tensors of given values, such as temperatures and the counters of norms.
    """
    with torch.device('meta'), _Shapes():
        yield
