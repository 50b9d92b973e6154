"""Finding the checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path

from .loading import CheckpointError, UnsafeCheckpointError, load_checkpoint

# What a run has to go on with; files of weights, and the best checkpoints, lack the optimizer.
_NEEDED = {'meta', 'message_hub', 'optimizer'}


def latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Find the checkpoint to resume from in the folder of a run.

    That is the one which MMEngine names in the folder's file ``last_checkpoint``. If it is not
    there, damaged, or without the optimizer's state, it is the newest good one beside it or in
    ``work_dir``; a warning says so.

    Args:
        work_dir: the folder; it need not exist.

    Returns:
        The path, or ``None`` if nothing was saved there yet.

    Raises:
        CheckpointError: if checkpoints were saved there, but none is complete.
        UnsafeCheckpointError: if one asks for classes that are not admitted.
    """
    note = Path(work_dir) / 'last_checkpoint'
    problems = []
    named = ''
    if os.path.lexists(note):
        try:
            named = _read_note(note)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f'{note} cannot be read ({error})')
        else:
            problems += [] if named else [f'{note} is empty']
    # Other backends, and checkpoints of DeepSpeed, which are folders, are MMEngine's to load.
    if '://' in named or (named and any(Path(named).glob('*_states.pt'))):
        return named
    if named:
        problem = _problem(named)
        if problem is None:
            return named
        problems.append(problem or f'{named} holds no state of a run, such as the optimizer')

    folders = {Path(work_dir), Path(named).parent if named else Path(work_dir)}
    others = {path for folder in folders for path in folder.glob('*.pth')} - {Path(named)}
    for path in sorted(others, key=_written, reverse=True):
        problem = _problem(path)
        if problem is None:
            if problems:
                warnings.warn(f'resuming from {path}, since {"; ".join(problems)}', stacklevel=2)
            return str(path)
        if problem:
            problems.append(problem)
    if problems:
        raise CheckpointError(
            f'{work_dir} has no complete checkpoint to resume from: {"; ".join(problems)}. To '
            f'train from the beginning, choose another work dir or move these files elsewhere'
        )
    return None


def _read_note(note: Path) -> str:
    """The path in a file ``last_checkpoint``; empty if there is none.

    Raises:
        OSError: if it is no ordinary file, or says what cannot be a path.
        UnicodeDecodeError: if it is not UTF-8.
    """
    if not note.is_file():
        raise OSError('it is no file')
    named = note.read_text(encoding='utf-8').strip()
    if '\0' in named:
        raise OSError('it holds a zero byte, and no path does')
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(named)
    return named


def _written(path: Path) -> float:
    """When a file was written; long ago if a run that goes on has removed it since."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0


def _problem(path: str | os.PathLike) -> str | None:
    """Why a run cannot go on from a file: empty if it holds only weights, ``None`` if it can."""
    try:
        checkpoint = load_checkpoint(path, map_location='meta')
    except UnsafeCheckpointError:
        raise
    except (CheckpointError, OSError) as error:
        return str(error)
    return None if isinstance(checkpoint, dict) and set(checkpoint) >= _NEEDED else ''


def take_seed(config: dict, path: str | os.PathLike) -> None:
    """Give a config without a seed the one of the run that a checkpoint is from.

    MMEngine takes the seed from the checkpoint, too, but after it built the samplers, which then
    shuffle with another seed than before.

    Args:
        config: of the runner; ``randomness.seed`` is set if it is missing or ``None``.
        path: the checkpoint to resume from. Addresses such as URLs are left to MMEngine.

    Raises:
        CheckpointError: as :func:`load_checkpoint` does.
    """
    randomness = config.get('randomness') or {}
    if randomness.get('seed') is not None or '://' in os.fspath(path) or os.path.isdir(path):
        return
    checkpoint = load_checkpoint(path, map_location='meta')
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    seed = meta.get('seed') if isinstance(meta, dict) else None
    # MMEngine's Config copies what is put into it, so it has to be complete by then.
    config['randomness'] = dict(randomness, seed=seed)
