"""What a module finds in a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def tensor_of(state_dict: dict[str, Any], name: str) -> Tensor | None:
    """The tensor of this name in a state dict, ``None`` if there is none.

    Raises:
        ValueError: if something else has its name. MMEngine loads non-strictly by default, and
            would only log it.
    """
    value = state_dict.get(name)
    if name in state_dict and not isinstance(value, Tensor):
        raise ValueError(
            f'{name} of the checkpoint is of type {type(value).__name__}, but the model needs a '
            f'tensor; the file is damaged, so get another one'
        )
    return value
