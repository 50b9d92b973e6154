"""Writing checkpoints so that no reader ever sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from mmengine.fileio import LocalBackend, register_backend

from .tensors import SUFFIX, checkpoint_to_bytes

_PARTIAL = '.{name}.{pid}.partial'


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
    with _whole_file(Path(path)) as file:
        torch.save(checkpoint, file)


def save_bytes(content: bytes, path: str | os.PathLike) -> None:
    """Like :func:`save_checkpoint`, for what is bytes already."""
    with _whole_file(Path(path)) as file:
        file.write(content)


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Remove what killed processes left of files that they were writing to a folder."""
    for path in Path(folder).glob(_PARTIAL.format(name='*', pid='*')):
        path.unlink(missing_ok=True)


@register_backend('local', force=True, prefixes='')
class WholeFileBackend(LocalBackend):
    """MMEngine's backend for local files, which its ``CheckpointHook`` writes with, too.

    It writes a file beside its destination, then moves it there in one step: whatever ends the
    process in between, an earlier file of that name stays as it was.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes to a file, whose folder is created if it is missing."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        save_bytes(obj, filepath)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f'cannot write {path}: the folder {path.parent} does not exist; create it first'
        )
    partial = path.with_name(_PARTIAL.format(name=path.name, pid=os.getpid()))
    try:
        with open(partial, 'wb') as file:
            yield file
            # Else a crash of the machine could leave an empty file of the final name.
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
