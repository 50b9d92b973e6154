"""Writing checkpoints so that no reader ever sees half of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

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
        OSError: if the disk is full, or the destination a device or a folder.
    """
    if Path(path).suffix == SUFFIX:
        write_whole(checkpoint_to_bytes(checkpoint), path, sync=True)
        return
    with whole_file(path) as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(checkpoint, recorder)
        except RuntimeError:
            # torch says only that it could not write, not why.
            if recorder.error is not None:
                raise recorder.error from None
            raise


class _ErrorRecorder:
    """A file to write to, which remembers why that failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
