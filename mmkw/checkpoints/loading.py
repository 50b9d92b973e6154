"""Reading checkpoints without running anything that they carry.

A torch checkpoint is a pickle, and a pickle is a program: it may name any function that Python
can import and have it called. Here it gets only the names in ``admitted.py`` and those a user
adds with :func:`allow_classes`; nothing else is imported or called, and time and memory are
bounded by the size of the file. MMEngine reads all its checkpoints this way (see
``installation.py``), which lets them load and resume on torch 2.6 and newer, too: torch's own
restricted unpickler refuses the message hub in them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from . import torch_formats
from .admitted import allow_classes
from .errors import CheckpointError, UnsafeCheckpointError
from .pickle_bounds import describe_error
from .safetensors_format import SUFFIX, checkpoint_from_bytes

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'allow_classes',
    'load_checkpoint',
    'read_checkpoint',
]


def load_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read what ``torch.save`` wrote, admitting harmless classes only, or a safetensors file.

    Args:
        path: the file, in torch's zip format, in the stream format from before torch 1.6, or, if
            it ends in ``.safetensors``, in that format. ``~`` is expanded.
        map_location: where the tensors go, as in :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        What was saved, for example a state dict or MMEngine's checkpoint dictionary.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if ``path`` is a folder.
        UnsafeCheckpointError: if the file refers to a class or function that is not admitted
            (see :func:`allow_classes`), or uses pickle in a way that torch never does.
        CheckpointError: if the file is empty, truncated, damaged or no checkpoint at all, or the
            path is that of a device or a pipe, or ``map_location`` names what is not there. The
            zip format has checksums, which are verified; the others have none.
        torch.cuda.OutOfMemoryError: if it does not fit on the device of ``map_location``.
        ImportError: if it ends in ``.safetensors`` and that package is not installed.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f'{path} is a folder; expected the path of a checkpoint file in it')
    if not os.path.exists(path):
        raise FileNotFoundError(f'checkpoint file {path} does not exist')
    if not os.path.isfile(path):
        raise CheckpointError(f'{path} is a device or a pipe; expected the path of a file')
    if path.endswith(SUFFIX):
        return _load_safetensors(path, map_location)
    with open(path, 'rb') as file:
        return read_checkpoint(file, path, map_location)


def _load_safetensors(path: str, map_location: Any) -> Any:
    try:
        checkpoint = checkpoint_from_bytes(Path(path).read_bytes())
    except ValueError as error:
        raise CheckpointError(f'{path} cannot be read as a checkpoint: {error}') from error
    for name, value in checkpoint['state_dict'].items():
        try:
            storage = torch_formats.restore_location(value.untyped_storage(), 'cpu', map_location)
        except CheckpointError as error:
            raise CheckpointError(f'{path}: {name} {error}') from error
        checkpoint['state_dict'][name] = torch.empty(
            0, dtype=value.dtype, device=storage.device
        ).set_(storage, value.storage_offset(), value.size(), value.stride())
    return checkpoint


def read_checkpoint(file: BinaryIO, name: str, map_location: Any = 'cpu') -> Any:
    """:func:`load_checkpoint` for an open file that errors call ``name``."""
    try:
        return torch_formats.read(file, map_location)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f'{name} was not loaded: {error}') from None
    except CheckpointError as error:
        raise CheckpointError(f'{name} {error}') from error
    except Exception as error:
        raise CheckpointError(
            f'{name} cannot be read as a checkpoint ({describe_error(error)}). '
            'Expected a complete file written by torch.save; was it truncated or damaged, or is '
            'it another kind of file?'
        ) from error
