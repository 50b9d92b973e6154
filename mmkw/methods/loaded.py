"""What a module finds in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

# Checkpoints that lack these load strictly.
_OPTIONAL = ('num_batches_tracked', 'temperature')


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


def wrong_kernel(name: str, kernel: Tensor, shape: Sequence[int]) -> ValueError:
    """The error for a plain kernel of a checkpoint that has not the shape of the layer's."""
    return ValueError(
        f'{name} of the checkpoint has shape {tuple(kernel.shape)}, but the model needs '
        f'{tuple(shape)}: it is of another architecture, depth or width'
    )


def check_attention(
    attention: nn.Module, state_dict: dict[str, Any], prefix: str, with_first: bool = False
) -> None:
    """Refuse a checkpoint whose attention has other options than that of the model.

    First dimensions are not compared by default: where they differ, so do the kernels or cells,
    whose own errors say more.

    Args:
        attention: of the model.
        state_dict: of the checkpoint, which may hold none of the attention.
        prefix: of the attention's names in it.
        with_first: whether first dimensions are compared, too.

    Raises:
        ValueError: if a tensor is missing, unknown or of another width. MMEngine loads
            non-strictly by default: attentions that it left random would pass for learned.
    """
    found = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
    if not found:
        return
    expected = attention.state_dict(prefix=prefix)
    first = 0 if with_first else 1
    for name in {**expected, **found}:
        here, there = tensor_of(expected, name), tensor_of(found, name)
        fits = here is not None and there is not None and here.dim() == there.dim()
        fits = fits and here.shape[first:] == there.shape[first:]
        if not fits and name.rpartition('.')[2] not in _OPTIONAL:
            raise ValueError(
                f'{name} {_shape(there)} in the checkpoint, but {_shape(here)} in the model: the '
                f'layer is of another width, or its attention has other options, such as reduction '
                f'or norm_layer; build the model with those of the checkpoint'
            )


def _shape(tensor: Tensor | None) -> str:
    return 'is missing' if tensor is None else f'has shape {tuple(tensor.shape)}'
