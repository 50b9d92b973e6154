"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PARTIAL = '.{name}.{machine}.{pid}.partial'
# Folders may be shared by machines, whose processes have the same numbers.
_MACHINE = platform.node()


@contextmanager
def whole_file(path: str | os.PathLike, sync: bool = True) -> Iterator[BinaryIO]:
    """Write a file beside its destination, then move it there in one step.

    Whatever ends the process in between, an earlier file of that name stays as it was. What dead
    processes left of it is removed first.

    Args:
        path: destination; its folder must exist, an existing file is replaced.
        sync: whether to wait until the disk has the content, so that a crash of the machine
            leaves no empty file of the final name. Defaults to ``True``.

    Yields:
        The file to write bytes to.

    Raises:
        FileNotFoundError: if the destination's folder does not exist.
        OSError: if the destination is a device, a folder, or a link that leads to itself, or the
            disk is full; names the destination.
    """
    # The file that a link names is replaced, rather than the link.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() or path.is_symlink():
        raise OSError(f'cannot write {path}: it is not an ordinary file; name another destination')
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f'cannot write {path}: the folder {path.parent} does not exist; create it first'
        )
    remove_partial_files(path.parent, path.name)
    partial = path.with_name(_PARTIAL.format(name=path.name, machine=_MACHINE, pid=os.getpid()))
    try:
        with open(partial, 'wb') as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # The system's error of a full disk names no file.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(content: bytes | str, path: str | os.PathLike, sync: bool = False) -> None:
    """Write bytes, or text in UTF-8, to a file by :func:`whole_file`."""
    with whole_file(path, sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_partial_files(folder: str | os.PathLike, name: str | None = None) -> None:
    """Remove what dead processes of this machine left of files that they were writing to a folder.

    Files of running processes stay, such as those of another run in the same folder.

    Args:
        folder: it need not exist.
        name: of the file that they were writing. Defaults to ``None``, any.
    """
    pattern = _PARTIAL.format(
        name='*' if name is None else glob.escape(name), machine=glob.escape(_MACHINE), pid='*'
    )
    for path in Path(folder).glob(pattern):
        pid = path.name.split('.')[-2]
        if pid.isdecimal() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
