"""The two formats of ``torch.save``: zip archives, and the pickle streams from before torch 1.6.

They are read here rather than by ``torch.load``, which trusts the sizes in the file, decompresses
what it finds, takes no notice of checksums, and keeps state for the whole process.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import default_restore_location
from torch.storage import TypedStorage

from .errors import CheckpointError
from .pickle_bounds import describe_error
from .tensor_constructors import check_sparse
from .unpickling import RestrictedUnpickler

_ZIP_START = b'PK\x03\x04'
_ZIP_END = b'PK\x05\x06'
# That record, with the longest comment.
_ZIP_END_LENGTH = 22 + 0xFFFF
_STREAM_VERSION = 1001


def read(file: BinaryIO, map_location: Any) -> Any:
    """Read an open file in either format.

    Args:
        file: from its beginning.
        map_location: as in :func:`torch.load`.

    Raises:
        CheckpointError: if it is of another format. Damaged files raise other errors, too.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_ZIP_START))
    file.seek(0)
    if not start:
        raise CheckpointError('is empty; expected a checkpoint written by torch.save')
    if start == _ZIP_START:
        return _read_archive(file, length, map_location)
    # A tar archive is how torch wrote before 2017.
    if start[:1] != pickle.PROTO or tarfile.is_tarfile(file):
        raise CheckpointError(
            f'is not a checkpoint: it starts with {start!r}, but a file written by torch.save is '
            'a zip archive or a pickle stream'
        )
    file.seek(0)
    return _read_stream(file, length, map_location)


def restore_location(storage: Any, location: str, map_location: Any) -> Any:
    """A storage where it belongs: :func:`torch.load`'s ``map_location``.

    Raises:
        CheckpointError: if there is no such place here.
        torch.cuda.OutOfMemoryError: if it is full.
    """
    try:
        if callable(map_location):
            moved = map_location(storage, location)
            return default_restore_location(storage, location) if moved is None else moved
        if isinstance(map_location, dict):
            location = map_location.get(location, location)
        elif map_location is not None:
            location = str(map_location)
        return default_restore_location(storage, location)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot be put on {location[:80]!r} ({describe_error(error)}); give map_location='cpu'"
        ) from error


def _untyped(storage: Any) -> torch.UntypedStorage:
    return getattr(storage, '_untyped_storage', storage)


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _read_archive(file: BinaryIO, length: int, map_location: Any) -> Any:
    with _open_archive(file, length) as archive:
        members = {info.filename.partition('/')[2]: info for info in archive.infolist()}
        if 'data.pkl' not in members:
            raise CheckpointError('is a zip archive, but not one that torch.save wrote')

        def content(name: str) -> bytes:
            try:
                return archive.read(members[name])
            except zipfile.BadZipFile as error:
                raise ValueError(f'{name} in it is damaged: {error}') from error

        order = content('byteorder').decode() if 'byteorder' in members else 'little'
        if order not in ('little', 'big'):
            raise ValueError(f'its byte order is {order[:20]!r}')
        storages: dict[str, Any] = {}

        def load_storage(reference: tuple) -> TypedStorage:
            _, (dtype,), key, location, count = reference
            if key not in storages:
                data = bytearray(content(f'data/{key}'))
                storage = torch.UntypedStorage(0)
                if data:
                    storage = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
                if order != sys.byteorder:
                    storage.byteswap(dtype)
                storages[key] = _untyped(restore_location(storage, location, map_location))
            storage = storages[key]
            if storage.nbytes() != count * dtype.itemsize:
                raise ValueError(
                    f'data/{key} in it has {storage.nbytes()} bytes, not {count} of {dtype}'
                )
            return _typed(storage, dtype)

        pickled = content('data.pkl')
        unpickler = RestrictedUnpickler(io.BytesIO(pickled), length, load_storage)
        result = unpickler.load()
    _check_sparse(unpickler)
    return result


def _open_archive(file: BinaryIO, length: int) -> zipfile.ZipFile:
    """Open an archive whose members are stored as they are, each in a place of its own."""
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        is_own = (
            len({info.filename for info in members}) == len(members)
            and all(info.compress_type == zipfile.ZIP_STORED for info in members)
            and sum(info.file_size for info in members) <= length
        )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            'is a zip archive, but damaged or not one that torch.save wrote'
            if _has_directory(file)
            else 'is truncated: the directory at the end of the archive is missing; copy or '
            'download it again'
        ) from error
    if any(info.filename.endswith('/constants.pkl') for info in members):
        raise CheckpointError(
            'is a TorchScript archive, which is a program; expected a checkpoint. '
            'Save the state_dict() of the scripted model instead'
        )
    if not is_own:
        raise CheckpointError(
            'is a zip archive, but damaged or not one that torch.save wrote: its members are '
            'compressed, overlap or have the same name'
        )
    return archive


def _has_directory(file: BinaryIO) -> bool:
    """Whether the mark of a zip archive's directory is where it can be, near the end."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _ZIP_END_LENGTH))
    return _ZIP_END in file.read()


def _read_stream(file: BinaryIO, length: int, map_location: Any) -> Any:
    def read_plain(*kinds: type) -> Any:
        value = RestrictedUnpickler(file, length).load()
        if type(value) not in kinds:
            raise ValueError('it does not begin and end as torch.save does')
        return value

    if read_plain(int) != torch.serialization.MAGIC_NUMBER:
        raise ValueError('it does not begin as torch.save does')
    if read_plain(int) != _STREAM_VERSION:
        raise ValueError('it is of another version of the format')
    read_plain(dict)

    storages: dict[str, torch.UntypedStorage] = {}
    sizes: dict[str, int] = {}
    total = 0

    def load_storage(reference: tuple) -> TypedStorage:
        nonlocal total
        _, (dtype,), key, location, count, *view = reference
        size = count * dtype.itemsize
        if key not in storages:
            total += size
            if total > length:
                raise ValueError('its tensors have more bytes than the file')
            storage = torch.UntypedStorage(size)
            storages[key] = _untyped(restore_location(storage, location, map_location))
            sizes[key] = dtype.itemsize
        if storages[key].nbytes() != size:
            raise ValueError(f'its storage {key[:80]} has two sizes')
        if view and view[0] is not None:
            _, offset, view_count = view[0]
            if not 0 <= offset <= offset + view_count <= count:
                raise ValueError(f'a view of its storage {key[:80]} is out of bounds')
            item = dtype.itemsize
            part = storages[key][offset * item : (offset + view_count) * item]
            return _typed(part, dtype)
        return _typed(storages[key], dtype)

    unpickler = RestrictedUnpickler(file, length, load_storage)
    result = unpickler.load()
    keys = read_plain(list)
    if set(map(type, keys)) - {str} or sorted(keys) != sorted(storages):
        raise ValueError('the list of its storages is wrong')
    for key in keys:
        _fill(file, storages[key], sizes[key])
    _check_sparse(unpickler)
    return result


def _check_sparse(unpickler: RestrictedUnpickler) -> None:
    for tensor in unpickler.sparse:
        if tensor.device.type != 'meta':
            check_sparse(tensor)


def _fill(file: BinaryIO, storage: torch.UntypedStorage, item_size: int) -> None:
    """Read the bytes of a storage, which follow their number of elements."""
    count, size = file.read(8), storage.nbytes()
    content = bytearray(file.read(size))
    if int.from_bytes(count, 'little') * item_size != size or len(content) != size:
        raise EOFError('the file ends within a tensor, or a tensor has the wrong size')
    if size and storage.device.type != 'meta':
        _bytes_of(storage).copy_(torch.frombuffer(content, dtype=torch.uint8))
