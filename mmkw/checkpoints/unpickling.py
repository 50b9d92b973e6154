"""Unpickling with a closed list of names, and with limits on time and memory."""

from __future__ import annotations

import argparse
import collections
import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor
from torch.storage import TypedStorage

from . import admitted
from .admitted import StorageType, latin1_bytes, user_types
from .errors import UnsafeCheckpointError
from .pickle_bounds import (
    check_attributes,
    comparisons,
    describe,
    is_compound,
    is_shape,
    structure_size,
)

_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter, ConfigDict)
_WITH_ATTRIBUTES = (collections.OrderedDict, argparse.Namespace, HistoryBuffer)
# typeshed says that it is the compiled class, which has no single steps.
_PythonUnpickler: Any = pickle._Unpickler
# Work beyond that in proportion to the file.
_FREE_WORK = 1_000_000


class _BoundedFile:
    """A file of which no more is read than it has, whatever length a pickle names.

    Python would first reserve the memory for all that it is asked to read.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._length = file, length
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._length))


class RestrictedUnpickler(_PythonUnpickler):
    """Python's own unpickler with a closed list of names.

    The attribute ``sparse`` lists the sparse tensors, whose indices are still to be checked.

    The pure Python class rather than the compiled one, since only its single steps can be
    checked: a name that is admitted as an argument is still not to be called, state is for
    instances only (given to a class or a function it would change it for the whole process), and
    what calls copy and keys compare is to be about as much as the file has bytes.

    Args:
        file: where the pickle starts.
        length: number of bytes that it has at most.
        load_storage: gives the storage for a reference ``('storage', type, key, ...)``.
    """

    dispatch: dict[int, Callable] = dict(_PythonUnpickler.dispatch)

    def __init__(
        self,
        file: BinaryIO,
        length: int,
        load_storage: Callable[[tuple], TypedStorage] | None = None,
    ) -> None:
        super().__init__(_BoundedFile(file, length), encoding='utf-8')
        self._load_storage = load_storage
        self._length = length
        self._work = _FREE_WORK + 4 * length
        self._compound_keys = 0
        self.sparse: list[Tensor] = []

    def load(self) -> Any:
        """Read one pickle.

        Raises:
            UnsafeCheckpointError: if it does what no checkpoint does.
        """
        result = super().load()
        structure_size(result)
        return result

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise UnsafeCheckpointError(
                'it copies the same values over and over, or has more keys that are neither text '
                'nor numbers than a checkpoint needs'
            )

    def find_class(self, module: str, name: str) -> Any:
        module = 'builtins' if module == '__builtin__' else module
        return admitted.find(f'{module}.{name}')

    def persistent_load(self, pid: Any) -> Any:
        kinds = (str, StorageType, str, str, int)
        is_storage = (
            self._load_storage is not None
            and type(pid) is tuple
            and tuple(map(type, pid[:5])) == kinds
            and pid[0] == 'storage'
        )
        if not is_storage:
            raise UnsafeCheckpointError(
                f'it refers to {describe(pid)} outside the pickle; expected the storage of a tensor'
            )
        if not 0 <= pid[4] <= self._length:
            raise ValueError('a storage in it is larger than the file')
        return self._load_storage(pid)

    def load_global(self) -> None:
        module, name = self.readline(), self.readline()
        if not name.endswith(b'\n'):
            raise EOFError('the pickle ends within a name')
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = admitted.constructor(self.stack[-1])
        if type(args) is not tuple:
            raise UnsafeCheckpointError(f'it calls a constructor with {describe(args)}')
        for arg in args:
            if type(arg) in (dict, list, tuple):
                # A config copies all that is in it.
                self._spend(structure_size(arg) if self.stack[-1] is ConfigDict else len(arg))
            elif type(arg) in (str, bytes):
                self._spend(len(arg))
        self._check_keys(admitted.keys_of(self.stack[-1], args))
        self.stack[-1] = result = function(*args)
        if isinstance(result, Tensor) and result.layout != torch.strided:
            self.sparse.append(result)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack[-1]
        is_created = not args and any(cls is known for known in admitted.CREATED.values())
        if not is_created and not any(cls is known for known in user_types()):
            raise UnsafeCheckpointError(
                f'it calls {describe(cls)}, which is not a constructor, with {describe(args)}'
            )
        self.stack[-1] = cls.__new__(cls, *args)

    def load_newobj_ex(self) -> None:
        if not any(self.stack[-3] is known for known in user_types()):
            raise UnsafeCheckpointError(
                f'it calls {describe(self.stack[-3])}, which is not a constructor'
            )
        super().load_newobj_ex()

    def load_build(self) -> None:
        state, instance = self.stack[-1], self.stack[-2]
        if isinstance(instance, np.dtype):
            self._check_dtype_state(instance, state)
        elif type(instance) is np.ndarray:
            state = self.stack[-1] = self._array_state(state)
        elif type(instance) in _WITH_ATTRIBUTES and type(state) is dict:
            self._spend(len(state))
            if type(instance) is HistoryBuffer:
                # These would replace the methods of the class; the class has them already.
                state.pop('statistics_methods', None)
            check_attributes(type(instance), state)
        elif type(instance) not in user_types():
            raise UnsafeCheckpointError(
                f'it sets the state of an object of type {type(instance).__name__!r}, '
                'which has none in a checkpoint'
            )
        super().load_build()

    @staticmethod
    def _check_dtype_state(dtype: np.dtype, state: Any) -> None:
        """Only the byte order may differ from what the type's code says (sizes and flags that
        do not fit the type would make NumPy read foreign memory)."""
        own_state: Any = dtype.__reduce__()[2]
        version, _, *rest = own_state
        is_own = (
            type(state) is tuple
            and len(state) == 2 + len(rest)
            and all(type(item) in (int, str, type(None)) for item in state)
            and (state[:1], *state[2:]) == ((version,), *rest)
        )
        if not is_own:
            raise UnsafeCheckpointError(
                f"it changes the 'numpy.dtype' {dtype} to {describe(state)}"
            )

    def _array_state(self, state: Any) -> tuple:
        """The values of an array, which have to be as many as its shape says."""
        try:
            version, shape, dtype, is_fortran, content = state
            if type(content) is str:
                content = latin1_bytes(content, 'latin1')
            self._spend(len(content))
            fits = (
                type(content) is bytes
                and is_shape(shape)
                and dtype.itemsize > 0
                and math.prod(shape) * dtype.itemsize == len(content)
            )
        except (TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise UnsafeCheckpointError(f'it fills an array with {describe(state)}')
        return version, shape, dtype, bool(is_fortran), content

    def _check_target(self, target: Any, kinds: tuple) -> None:
        if type(target) not in kinds and type(target) not in user_types():
            raise UnsafeCheckpointError(f'it adds items to {describe(target)}')

    def _check_keys(self, keys: list) -> None:
        known = self._compound_keys
        self._compound_keys += sum(is_compound(key, user_types()) for key in keys)
        self._spend(comparisons(self._compound_keys) - comparisons(known))

    def load_append(self) -> None:
        self._check_target(self.stack[-2], (list,))
        super().load_append()

    def load_appends(self) -> None:
        self._check_target(self.metastack[-1][-1], (list,))
        super().load_appends()

    def load_setitem(self) -> None:
        self._check_target(self.stack[-3], _DICTS)
        self._check_keys([self.stack[-2]])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_target(self.metastack[-1][-1], _DICTS)
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        self._check_target(self.metastack[-1][-1], (set,))
        self._check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        self._check_keys(self.stack)
        super().load_frozenset()

    def load_foreign(self) -> None:
        raise UnsafeCheckpointError('it contains a pickle instruction that torch.save never writes')

    dispatch[pickle.GLOBAL[0]] = load_global
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    for _instruction in (
        pickle.INST,
        pickle.OBJ,
        pickle.PERSID,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.BYTEARRAY8,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    ):
        dispatch[_instruction[0]] = load_foreign
