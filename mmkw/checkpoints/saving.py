"""Writing checkpoints so that no reader ever sees half of one."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def save_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint beside its destination, then move it there in one step.

    Args:
        checkpoint: what ``torch.save`` writes.
        path: destination; its folder must exist, an existing file is replaced.

    Raises:
        FileNotFoundError: if the destination's folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f'cannot write {path}: the folder {path.parent} does not exist; create it first'
        )
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        torch.save(checkpoint, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
