"""Checkpoints in the safetensors format, which can hold tensors and text, but no programs."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import torch

from .pickle_bounds import describe_error

SUFFIX = '.safetensors'
_META = 'mmkw.meta'


def checkpoint_to_bytes(checkpoint: dict[str, Any]) -> bytes:
    """A checkpoint as the content of a safetensors file.

    Args:
        checkpoint: ``state_dict`` and ``meta``. The latter becomes JSON text in the file's
            metadata, from which tuples come back as lists.

    Raises:
        ImportError: if the safetensors package is not installed.
        ValueError: if the checkpoint has other entries, or ``meta`` holds what JSON has not.
    """
    others = sorted(set(checkpoint) - {'state_dict', 'meta'})
    if others:
        raise ValueError(
            f'a {SUFFIX} file holds state_dict and meta, but the checkpoint also has {others}; '
            f'write a .pth file instead'
        )
    try:
        meta = json.dumps(checkpoint.get('meta', {}))
    except TypeError as error:
        raise ValueError(
            f'meta does not go into a {SUFFIX} file ({error}); write a .pth file instead'
        ) from error
    # The format has no tensors that share memory or are not contiguous.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in checkpoint['state_dict'].items()
    }
    return _safetensors().save(tensors, {'format': 'pt', _META: meta})


def checkpoint_from_bytes(content: bytes) -> dict[str, Any]:
    """What :func:`checkpoint_to_bytes` wrote; of files of other origin, ``meta`` is empty.

    Tensors are on the CPU. The format has no checksums: flipped bits in a tensor are not noticed.

    Raises:
        ImportError: if the safetensors package is not installed.
        ValueError: if this is no whole safetensors file, or its ``meta`` is damaged.
    """
    library = _safetensors()
    try:
        state_dict = library.load(content)
        length = int.from_bytes(content[:8], 'little')
        metadata = json.loads(content[8 : 8 + length]).get('__metadata__', {})
        meta = json.loads(metadata.get(_META, '{}'))
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f'not a whole {SUFFIX} file ({describe_error(error)}); was it truncated or damaged, or '
            f'is it another kind of file?'
        ) from error
    return dict(state_dict=state_dict, meta=meta)


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch as library
    except ImportError as error:
        raise ImportError(
            f"{SUFFIX} files need the safetensors package: pip install 'safetensors>=0.4,<1'"
        ) from error
    return library
