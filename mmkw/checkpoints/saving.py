"""Writing checkpoints so that no reader ever sees half of one."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..files import whole_file, write_whole
from .safetensors_format import SUFFIX, checkpoint_to_bytes


def save_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint beside its destination, then move it there in one step.

    Args:
        checkpoint: what ``torch.save`` writes.
        path: destination; its folder must exist, an existing file is replaced. If it ends in
            ``.safetensors``, it is written in that format, see :func:`checkpoint_to_bytes`.

    Raises:
        FileNotFoundError: if the destination's folder does not exist.
    """
    if Path(path).suffix == SUFFIX:
        save_bytes(checkpoint_to_bytes(checkpoint), path)
        return
    with whole_file(path) as file:
        torch.save(checkpoint, file)


def save_bytes(content: bytes, path: str | os.PathLike) -> None:
    """Like :func:`save_checkpoint`, for what is bytes already."""
    write_whole(content, path, sync=True)
