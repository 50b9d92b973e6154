"""Finding the checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from .loading import CheckpointError, UnsafeCheckpointError, load_checkpoint


def latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Find the checkpoint to resume from in the folder of a run.

    That is the one which MMEngine names in the folder's file ``last_checkpoint``. If that is
    missing or damaged, it is the newest complete one beside it or in ``work_dir`` that holds the
    optimizer's state; a warning says so.

    Args:
        work_dir: the folder; it need not exist.

    Returns:
        The path, or ``None`` if nothing was saved there yet.

    Raises:
        CheckpointError: if checkpoints were saved there, but none is complete.
        UnsafeCheckpointError: if one asks for classes that are not admitted.
    """
    note = Path(work_dir) / 'last_checkpoint'
    named = note.read_text().strip() if note.is_file() else ''
    # Other backends, and checkpoints of DeepSpeed, which are folders, are MMEngine's to load.
    if '://' in named or (named and os.path.isdir(named)):
        return named
    problems = []
    if named:
        try:
            load_checkpoint(named, map_location='meta')
            return named
        except UnsafeCheckpointError:
            raise
        except (CheckpointError, FileNotFoundError) as error:
            problems.append(str(error))
    elif note.is_file():
        problems.append(f'{note} is empty')

    folders = {Path(work_dir), Path(named).parent if named else Path(work_dir)}
    others = {path for folder in folders for path in folder.glob('*.pth')} - {Path(named)}
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            checkpoint = load_checkpoint(path, map_location='meta')
        except UnsafeCheckpointError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if isinstance(checkpoint, dict) and {'meta', 'message_hub', 'optimizer'} <= set(checkpoint):
            if problems:
                warnings.warn(f'resuming from {path}, since {"; ".join(problems)}', stacklevel=2)
            return str(path)
    if problems:
        raise CheckpointError(
            f'{work_dir} has no complete checkpoint to resume from: {"; ".join(problems)}. To '
            f'train from the beginning, remove {note} and the damaged files'
        )
    return None
