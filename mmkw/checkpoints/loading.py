"""Reading checkpoints without running anything that they carry.

A torch checkpoint is a pickle, and a pickle is a program: it may name any function that Python
can import and have it called. The unpickler here resolves only the names in this file's tables
(:data:`_CALLABLE`, :data:`_NAMED`) and those a user adds with :func:`allow_classes`; nothing else
is imported or called. MMEngine reads all its checkpoints with it (see ``installation.py``),
which lets them load and resume on torch 2.6 and newer, too: torch's own restricted unpickler
refuses the message hub in them.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pickle
import tarfile
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from .safetensors_format import SUFFIX, checkpoint_from_bytes

_ZIP_START = b'PK\x03\x04'
_ZIP_END = b'PK\x05\x06'
# That record, with the longest comment.
_ZIP_END_LENGTH = 22 + 0xFFFF


class CheckpointError(pickle.UnpicklingError):
    """A file that cannot be read as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for something outside the list of harmless classes."""


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
        CheckpointError: if the file is empty, truncated, damaged or no checkpoint at all. The zip
            format has checksums, which are verified; the others have none.
        ImportError: if it ends in ``.safetensors`` and that package is not installed.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f'{path} is a folder; expected the path of a checkpoint file in it')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint file {path} does not exist')
    if path.endswith(SUFFIX):
        return _load_safetensors(path, map_location)
    with open(path, 'rb') as file:
        return read_checkpoint(file, path, map_location)


def _load_safetensors(path: str, map_location: Any) -> Any:
    try:
        checkpoint = checkpoint_from_bytes(Path(path).read_bytes())
    except ValueError as error:
        raise CheckpointError(f'{path} cannot be read as a checkpoint: {error}') from error
    if isinstance(map_location, (str, torch.device)):
        for name, value in checkpoint['state_dict'].items():
            checkpoint['state_dict'][name] = value.to(map_location)
    return checkpoint


def read_checkpoint(file: BinaryIO, name: str, map_location: Any = 'cpu') -> Any:
    """:func:`load_checkpoint` for an open file that errors call ``name``."""
    reader = _check_format(name, file)
    try:
        if reader is not None:
            _verify_checksums(reader, file)
        file.seek(0)
        with torch.sparse.check_sparse_tensor_invariants():
            return torch.load(
                file,
                map_location=map_location,
                pickle_module=_RESTRICTED_PICKLE,
                weights_only=False,
                mmap=False,
            )
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f'{name} was not loaded: {error}') from None
    except Exception as error:
        raise CheckpointError(
            f'{name} cannot be read as a checkpoint ({type(error).__name__}: {error}). '
            'Expected a complete file written by torch.save; was it truncated or damaged, or is '
            'it another kind of file?'
        ) from error


def allow_classes(*classes: Any) -> None:
    """Admit further classes (or the functions that rebuild them) in checkpoints.

    Loading a checkpoint then creates instances of these classes, and calls their
    ``__setstate__``, with whatever arguments the file gives: name only what is harmless then.

    Args:
        *classes: what to admit, for the rest of this process.

    Raises:
        TypeError: if an argument is neither a class nor a function.
    """
    for cls in classes:
        if not hasattr(cls, '__qualname__') or not hasattr(cls, '__module__'):
            raise TypeError(
                f'allow_classes takes classes or functions themselves, not {cls!r} '
                f'of type {type(cls).__name__}'
            )
    for cls in classes:
        _USER_ALLOWED[f'{cls.__module__}.{cls.__qualname__}'] = cls


def _check_format(name: str, file: BinaryIO) -> torch._C.PyTorchFileReader | None:
    """Refuse files that torch would not read with the given unpickler, or not as a checkpoint.

    Returns what torch.load reads it with if it is a zip archive, rather than a pickle stream.
    """
    start = file.read(len(_ZIP_START))
    file.seek(0)
    if not start:
        raise CheckpointError(f'{name} is empty; expected a checkpoint written by torch.save')
    if start == _ZIP_START:
        try:
            # The reader that torch.load uses: another one might see other records in this file.
            reader = torch._C.PyTorchFileReader(file)
            records = reader.get_all_records()
        except Exception as error:
            what = (
                'is a zip archive, but damaged or not one that torch.save wrote'
                if _has_directory(file)
                else 'is truncated: the directory at the end of the archive is missing; copy or '
                'download it again'
            )
            raise CheckpointError(f'{name} {what}') from error
        if 'constants.pkl' in records:
            raise CheckpointError(
                f'{name} is a TorchScript archive, which is a program; expected a checkpoint. '
                'Save the state_dict() of the scripted model instead'
            )
        if 'data.pkl' not in records:
            raise CheckpointError(f'{name} is a zip archive, but not one that torch.save wrote')
        return reader
    # A tar archive is how torch wrote before 2017; it would be unpacked into a temporary folder.
    if start[:1] != pickle.PROTO or tarfile.is_tarfile(file):
        raise CheckpointError(
            f'{name} is not a checkpoint: it starts with {start!r}, but a file written by '
            'torch.save is a zip archive or a pickle stream'
        )
    file.seek(0)
    return None


def _has_directory(file: BinaryIO) -> bool:
    """Whether the mark of a zip archive's directory is where it can be, near the end."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _ZIP_END_LENGTH))
    return _ZIP_END in file.read()


def _verify_checksums(reader: torch._C.PyTorchFileReader, file: BinaryIO) -> None:
    """Compare what torch reads with the checksums in the archive, which it does not look at.

    torch can write archives without checksums, but by default it does not.
    """
    with zipfile.ZipFile(file) as archive:
        sums = {info.filename.partition('/')[2]: info.CRC for info in archive.infolist()}
    for record in reader.get_all_records():
        if zlib.crc32(reader.get_record(record)) != sums.get(record):
            raise zipfile.BadZipFile(f'the checksum of {record} in it is wrong')


def _latin1_bytes(text, encoding):
    """``bytes`` as pickle protocol 2 spells them; other codecs are not for checkpoints."""
    if encoding != 'latin1':
        raise UnsafeCheckpointError(f'it asks for the text encoding {encoding!r}')
    return text.encode('latin1')


def _history_statistic(owner, name):
    """The one use of ``getattr`` in MMEngine's checkpoints: naming a statistic of HistoryBuffer."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnsafeCheckpointError(
            f"it calls 'builtins.getattr' for {name!r}; expected a statistic of HistoryBuffer, "
            'the only use that a checkpoint has for it'
        )
    return name


def _plain_dtype(code, align=False, copy=False):
    """A NumPy number or text type: a copy, since unpickling writes its byte order in place."""
    dtype = np.dtype(code) if isinstance(code, str) else None
    if dtype is None or dtype.kind not in 'biufcSU':
        raise UnsafeCheckpointError(
            f"it makes a 'numpy.dtype' of {code!r}; expected the code of a number or text type"
        )
    return np.dtype(code, copy=True)


_TENSOR_REBUILDERS = (
    '_rebuild_tensor',
    '_rebuild_tensor_v2',
    '_rebuild_tensor_v3',
    '_rebuild_parameter',
    '_rebuild_parameter_with_state',
    '_rebuild_sparse_tensor',
)
_ndarray_rebuilder = np.empty(0).__reduce__()[0]
_numpy_scalar_rebuilder = np.float64(0).__reduce__()[0]

# What a checkpoint may name and have called, by the name in the pickle. Functions that reach
# further than a checkpoint needs are replaced by narrow ones of this file.
_CALLABLE = {
    **{
        f'torch._utils.{name}': getattr(torch._utils, name)
        for name in _TENSOR_REBUILDERS
        if hasattr(torch._utils, name)
    },
    'torch.serialization._get_layout': torch.serialization._get_layout,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'numpy.core.multiarray._reconstruct': _ndarray_rebuilder,
    'numpy._core.multiarray._reconstruct': _ndarray_rebuilder,
    'numpy.core.multiarray.scalar': _numpy_scalar_rebuilder,
    'numpy._core.multiarray.scalar': _numpy_scalar_rebuilder,
    'numpy.dtype': _plain_dtype,
    'collections.OrderedDict': collections.OrderedDict,
    'collections.defaultdict': collections.defaultdict,
    'collections.Counter': collections.Counter,
    **{
        f'datetime.{cls.__name__}': cls
        for cls in (
            datetime.date,
            datetime.datetime,
            datetime.time,
            datetime.timedelta,
            datetime.timezone,
        )
    },
    **{
        f'builtins.{cls.__name__}': cls
        for cls in (set, frozenset, bytes, bytearray, complex, slice, range)
    },
    'builtins.getattr': _history_statistic,
    '_codecs.encode': _latin1_bytes,
    'argparse.Namespace': argparse.Namespace,
    'mmengine.config.config.ConfigDict': ConfigDict,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
}

# What it may name, but not have called: argument types and the factories of a defaultdict.
_NAMED = {
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    'torch.storage.UntypedStorage': torch.UntypedStorage,
    'numpy.ndarray': np.ndarray,
    **{f'builtins.{cls.__name__}': cls for cls in (bool, int, float, str, list, tuple, dict)},
}

# Instances that may receive state beyond their constructor's arguments.
_WITH_STATE = (collections.OrderedDict, argparse.Namespace, np.ndarray)

_USER_ALLOWED = {}


class _RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler with a closed list of names.

    The pure Python class rather than the compiled one, since only its single steps can be
    checked: a name that is admitted as an argument is still not to be called, and state is for
    instances only (given to a class or a function it would change it for the whole process).
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_global(self):
        module, name = self.readline(), self.readline()
        if not name.endswith(b'\n'):
            raise EOFError('the pickle ends within a name')
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def find_class(self, module: str, name: str) -> Any:
        module = 'builtins' if module == '__builtin__' else module
        full_name = f'{module}.{name}'
        for table in (_CALLABLE, _NAMED, _USER_ALLOWED):
            if full_name in table:
                return table[full_name]
        raise UnsafeCheckpointError(
            f'it refers to {full_name!r}, which is not among the classes known to be harmless in '
            'a checkpoint. If you trust this file and need that class, import it and call '
            f'mmkw.checkpoints.allow_classes({name}) before loading'
        )

    def _check_call(self, function):
        admitted = (*_CALLABLE.values(), *_USER_ALLOWED.values())
        if not any(function is known for known in admitted):
            raise UnsafeCheckpointError(f'it calls {function!r}, which is not a constructor')

    def load_reduce(self):
        self._check_call(self.stack[-2])
        super().load_reduce()

    def load_newobj(self):
        self._check_call(self.stack[-2])
        super().load_newobj()

    def load_newobj_ex(self):
        self._check_call(self.stack[-3])
        super().load_newobj_ex()

    def load_build(self):
        state, instance = self.stack[-1], self.stack[-2]
        if isinstance(instance, np.dtype):
            self._check_dtype_state(instance, state)
        elif type(instance) is HistoryBuffer and type(state) is dict:
            # These would replace the methods of the class; the class has them already.
            state.pop('statistics_methods', None)
        elif type(instance) not in (*_WITH_STATE, *_USER_ALLOWED.values()):
            raise UnsafeCheckpointError(
                f'it sets the state of an object of type {type(instance).__name__!r}, '
                'which has none in a checkpoint'
            )
        super().load_build()

    @staticmethod
    def _check_dtype_state(dtype, state):
        """Only the byte order may differ from what the type's code says (sizes and flags that
        do not fit the type would make NumPy read foreign memory)."""
        version, _, *rest = dtype.__reduce__()[2]
        if not isinstance(state, tuple) or (state[:1], *state[2:]) != ((version,), *rest):
            raise UnsafeCheckpointError(f"it changes the 'numpy.dtype' {dtype} to {state!r}")

    def load_binpersid(self):
        reference = self.stack[-1]
        if not isinstance(reference, tuple) or reference[:1] not in (('storage',), (b'storage',)):
            raise UnsafeCheckpointError(
                f'it refers to {reference!r} outside the pickle; expected the storage of a tensor'
            )
        super().load_binpersid()

    def load_foreign(self):
        raise UnsafeCheckpointError('it contains a pickle instruction that torch.save never writes')

    dispatch[pickle.GLOBAL[0]] = load_global
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    for _instruction in (
        pickle.INST,
        pickle.OBJ,
        pickle.PERSID,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
    ):
        dispatch[_instruction[0]] = load_foreign


def _load(file, **kwargs):
    return _RestrictedUnpickler(file, **kwargs).load()


_RESTRICTED_PICKLE = types.SimpleNamespace(
    __name__=__name__, Unpickler=_RestrictedUnpickler, load=_load
)
