"""What the tensors of a foreign checkpoint have to be before they go into a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_names(state_dict: Any) -> None:
    """Refuse what is no state dict.

    Raises:
        ValueError: if it is no mapping, is empty, or has other things than tensors by name.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        found = 'nothing' if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(f'it holds no state dict: expected tensors by name, but found {found}')
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'it holds no state dict: expected tensors by name, but {name!r} is of type '
                f'{type(value).__name__}'
            )


def check_values(name: str, value: Tensor) -> None:
    """Refuse tensors without values, and values that no training leaves behind.

    Raises:
        ValueError: if a tensor is sparse or on the meta device, or has values that are infinite,
            not a number, or too large for float32.
    """
    if value.layout != torch.strided or value.device.type == 'meta':
        raise ValueError(f'{name} is no ordinary tensor, but {value.layout} on {value.device}')
    if value.is_floating_point() and not value.float().isfinite().all():
        raise ValueError(
            f'{name} has values that are infinite, not a number or too large for float32; the file '
            f'is damaged or its training diverged, so get another one'
        )


def same_but_ones(left: Tensor, right: Tensor) -> bool:
    """Whether two shapes are the same but for dimensions of size 1.

    Linear layers may stand for 1 x 1 convolutions, and layer scales have shape (C,) or
    (1, C, 1, 1).
    """
    return left.squeeze().shape == right.squeeze().shape
