"""What a checkpoint may name, and have called, when it is unpickled.

Each name in :data:`CALLABLE` comes with the function that is called in its place: it takes only
the arguments that a pickled checkpoint has for it. ``bytearray(10**12)``, for one, would be no
danger to safety, but to the machine.
"""

from __future__ import annotations

import argparse
import collections
import datetime
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from . import tensor_constructors as tensors
from .errors import UnsafeCheckpointError
from .pickle_bounds import describe, expect, is_shape

USER_ALLOWED: dict[str, Any] = {}


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
        USER_ALLOWED[f'{cls.__module__}.{cls.__qualname__}'] = cls


def user_types() -> tuple[Any, ...]:
    """What :func:`allow_classes` admitted."""
    return tuple(USER_ALLOWED.values())


def find(name: str) -> Any:
    """What a pickle gets for a name.

    Raises:
        UnsafeCheckpointError: if the name is not admitted.
    """
    if name in CALLABLE:
        return CALLABLE[name][0]
    for table in (CREATED, NAMED, USER_ALLOWED):
        if name in table:
            return table[name]
    raise UnsafeCheckpointError(
        f'it refers to {describe(name)}, which is not among the classes known to be harmless in a '
        f'checkpoint. If you trust this file and need that class, import it and call '
        f'mmkw.checkpoints.allow_classes({name.rpartition(".")[2][:80]}) before loading'
    )


def constructor(function: Any) -> Callable:
    """What is called when a pickle calls this.

    Raises:
        UnsafeCheckpointError: if it was admitted as an argument only.
    """
    for known, replacement in CALLABLE.values():
        if function is known:
            return replacement
    if any(function is known for known in user_types()):
        return function
    raise UnsafeCheckpointError(f'it calls {describe(function)}, which is not a constructor')


def keys_of(function: Any, args: tuple) -> list:
    """What becomes keys of a dict, or members of a set, when a pickle calls this."""
    first = args[0] if args and type(args[0]) in (list, tuple, dict) else ()
    if any(function is cls for cls in (set, frozenset, collections.Counter)):
        return list(first)
    if function is collections.OrderedDict:
        return [pair[0] for pair in first if type(pair) in (list, tuple) and pair]
    return []


def _taking(function: Callable, *signatures: tuple) -> Callable:
    """The function, for arguments of exactly these types."""

    def call(*args: Any) -> Any:
        expect(tuple(map(type, args)) in signatures, function.__name__, args)
        return function(*args)

    return call


def _collection(cls: type) -> Callable:
    """A set of the members in a list."""

    def call(members: list | tuple = ()) -> Any:
        expect(type(members) in (list, tuple), cls.__name__, members)
        return cls(members)

    return call


def _ordered_dict(pairs: list | tuple = ()) -> collections.OrderedDict:
    """Empty, or from the pairs that Python 2 wrote."""
    expect(type(pairs) in (list, tuple), 'OrderedDict', pairs)
    for pair in pairs:
        expect(type(pair) in (list, tuple) and len(pair) == 2, 'OrderedDict', pair)
    return collections.OrderedDict(pairs)


def _default_dict(factory: Any = None) -> collections.defaultdict:
    expect(factory is None or isinstance(factory, type), 'defaultdict', factory)
    return collections.defaultdict(factory)


def _config_dict(content: Any = None) -> ConfigDict:
    if content is None:
        return ConfigDict()
    expect(type(content) is dict, 'ConfigDict', content)
    return ConfigDict(content)


def _size(sizes: Any) -> torch.Size:
    expect(is_shape(sizes), 'Size', sizes)
    return torch.Size(sizes)


def _slice(*bounds: Any) -> slice:
    expect(all(type(bound) in (int, type(None)) for bound in bounds), 'slice', bounds)
    return slice(*bounds)


def _byte_array(text: Any = b'', encoding: Any = 'latin-1') -> bytearray:
    if type(text) is str:
        return bytearray(latin1_bytes(text, encoding))
    expect(type(text) is bytes, 'bytearray', text)
    return bytearray(text)


def latin1_bytes(text: Any, encoding: Any) -> bytes:
    """``bytes`` as pickle protocol 2 spells them; other codecs are not for checkpoints."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise UnsafeCheckpointError(f'it asks for the text encoding {describe(encoding)}')
    return text.encode('latin1')


def _history_statistic(owner: Any, name: Any) -> str:
    """The one use of ``getattr`` in MMEngine's checkpoints: naming a statistic of HistoryBuffer."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnsafeCheckpointError(
            f"it calls 'builtins.getattr' for {describe(name)}; expected a statistic of "
            'HistoryBuffer, the only use that a checkpoint has for it'
        )
    return name


def _dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    """A NumPy number or text type: a copy, since unpickling writes its byte order in place."""
    # A long code is of a type with fields.
    dtype = np.dtype(code) if type(code) is str and len(code) < 20 else None
    if dtype is None or dtype.kind not in 'biufcSU':
        raise UnsafeCheckpointError(
            f"it makes a 'numpy.dtype' of {describe(code)}; expected the code of a number or text "
            'type'
        )
    return np.dtype(code, copy=True)


def _array(cls: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, which gets its values as its state."""
    is_empty = cls is np.ndarray and shape == (0,) and code in (b'b', 'b')
    expect(is_empty, '_reconstruct', (cls, shape, code))
    return np.empty(0, np.int8)


def _scalar(dtype: Any, content: Any) -> np.generic:
    is_plain = isinstance(dtype, np.dtype) and type(content) is bytes
    expect(is_plain and dtype.itemsize == len(content), 'scalar', (dtype, content))
    return np.frombuffer(content, dtype)[0]


_array_rebuilder = np.empty(0).__reduce__()[0]
_scalar_rebuilder = np.float64(0).__reduce__()[0]
_INTEGERS = [(int,) * count for count in range(1, 9)]
_DATES: dict[str, list[tuple]] = {
    'date': [(bytes,), (str,), *_INTEGERS],
    'datetime': [(bytes,), (str,), (bytes, datetime.timezone), (str, datetime.timezone)],
    'time': [(bytes,), (str,), (bytes, datetime.timezone), (str, datetime.timezone)],
    'timedelta': [(int, int, int)],
    'timezone': [(datetime.timedelta,), (datetime.timedelta, str)],
}


_STORAGES = dict(
    Byte=torch.uint8,
    Char=torch.int8,
    Short=torch.int16,
    Int=torch.int32,
    Long=torch.int64,
    Half=torch.float16,
    BFloat16=torch.bfloat16,
    Float=torch.float32,
    Double=torch.float64,
    ComplexFloat=torch.complex64,
    ComplexDouble=torch.complex128,
    Bool=torch.bool,
)


class StorageType(NamedTuple):
    """What torch's classes of storages say."""

    dtype: torch.dtype


def _own(function: Callable) -> tuple[Callable, Callable]:
    return function, function


CALLABLE: dict[str, tuple[Any, Callable]] = {
    'torch._utils._rebuild_tensor': _own(tensors.tensor),
    'torch._utils._rebuild_tensor_v2': _own(tensors.tensor_v2),
    'torch._utils._rebuild_tensor_v3': _own(tensors.tensor_v3),
    'torch._utils._rebuild_parameter': _own(tensors.parameter),
    'torch._utils._rebuild_parameter_with_state': _own(tensors.parameter),
    'torch._utils._rebuild_sparse_tensor': _own(tensors.sparse_tensor),
    'torch.serialization._get_layout': _own(tensors.layout),
    'torch.Size': (torch.Size, _size),
    'torch.device': (torch.device, _taking(torch.device, (str,), (str, int))),
    **{
        f'numpy.{core}.multiarray.{name}': pair
        for core in ('core', '_core')
        for name, pair in (
            ('_reconstruct', (_array_rebuilder, _array)),
            ('scalar', (_scalar_rebuilder, _scalar)),
        )
    },
    'numpy.dtype': _own(_dtype),
    'collections.OrderedDict': (collections.OrderedDict, _ordered_dict),
    'collections.defaultdict': (collections.defaultdict, _default_dict),
    'collections.Counter': (
        collections.Counter,
        _taking(collections.Counter, (), (dict,)),
    ),
    **{
        f'datetime.{name}': (getattr(datetime, name), _taking(getattr(datetime, name), *signatures))
        for name, signatures in _DATES.items()
    },
    'builtins.set': (set, _collection(set)),
    'builtins.frozenset': (frozenset, _collection(frozenset)),
    'builtins.bytes': (bytes, _taking(bytes, ())),
    'builtins.bytearray': (bytearray, _byte_array),
    'builtins.complex': (complex, _taking(complex, (float, float))),
    'builtins.slice': (slice, _slice),
    'builtins.range': (range, _taking(range, (int, int, int))),
    'builtins.getattr': _own(_history_statistic),
    '_codecs.encode': _own(latin1_bytes),
    'mmengine.config.config.ConfigDict': (ConfigDict, _config_dict),
}

# What is created without a call, and then given its attributes.
CREATED = {
    'argparse.Namespace': argparse.Namespace,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
}

# What it may name, but not have called: argument types and the factories of a defaultdict.
NAMED = {
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    'torch.storage.UntypedStorage': StorageType(torch.uint8),
    **{
        f'{module}.{name}Storage': StorageType(dtype)
        for module in ('torch', 'torch.cuda')
        for name, dtype in _STORAGES.items()
    },
    'numpy.ndarray': np.ndarray,
    **{f'builtins.{cls.__name__}': cls for cls in (bool, int, float, str, list, tuple, dict)},
}
