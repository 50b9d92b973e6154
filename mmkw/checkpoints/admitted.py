"""What a checkpoint may name, and have called, when it is unpickled.

Each name in :data:`CALLABLE` comes with the function that is called in its place: it takes only
the arguments that a pickled checkpoint has for it. ``bytearray(10**12)``, for one, would be no
danger to safety, but to the machine.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn
from torch.storage import TypedStorage

from .errors import UnsafeCheckpointError
from .pickle_bounds import describe, key_size, structure_size

# Elements that a tensor may have beyond those of its storage, by repeating them (stride 0).
_MAX_REPEATED = 2**26

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


def _expect(condition: bool, name: str, args: Any) -> None:
    if not condition:
        raise UnsafeCheckpointError(
            f'it calls {name!r} with {describe(args)}, as no checkpoint does'
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _taking(function: Callable, *signatures: tuple) -> Callable:
    """The function, for arguments of exactly these types."""

    def call(*args: Any) -> Any:
        _expect(tuple(map(type, args)) in signatures, function.__name__, args)
        return function(*args)

    return call


def _collection(cls: type) -> Callable:
    """A set of the members in a list."""

    def call(members: list | tuple = ()) -> Any:
        _expect(type(members) in (list, tuple), cls.__name__, members)
        for member in members:
            key_size(member, user_types())
        return cls(members)

    return call


def _ordered_dict(pairs: list | tuple = ()) -> collections.OrderedDict:
    """Empty, or from the pairs that Python 2 wrote."""
    _expect(type(pairs) in (list, tuple), 'OrderedDict', pairs)
    for pair in pairs:
        _expect(type(pair) in (list, tuple) and len(pair) == 2, 'OrderedDict', pair)
        key_size(pair[0], user_types())
    return collections.OrderedDict(pairs)


def _default_dict(factory: Any = None) -> collections.defaultdict:
    _expect(factory is None or isinstance(factory, type), 'defaultdict', factory)
    return collections.defaultdict(factory)


def _config_dict(content: Any = None) -> ConfigDict:
    if content is None:
        return ConfigDict()
    _expect(type(content) is dict, 'ConfigDict', content)
    structure_size(content)
    return ConfigDict(content)


def _size(sizes: Any) -> torch.Size:
    _expect(type(sizes) is tuple and all(map(_is_count, sizes)), 'Size', sizes)
    return torch.Size(sizes)


def _byte_array(text: Any = b'', encoding: Any = 'latin-1') -> bytearray:
    if type(text) is str:
        return bytearray(latin1_bytes(text, encoding))
    _expect(type(text) is bytes, 'bytearray', text)
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
    dtype = np.dtype(code) if type(code) is str else None
    if dtype is None or dtype.kind not in 'biufcSU':
        raise UnsafeCheckpointError(
            f"it makes a 'numpy.dtype' of {describe(code)}; expected the code of a number or text "
            'type'
        )
    return np.dtype(code, copy=True)


def _array(cls: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, which gets its values as its state."""
    is_empty = cls is np.ndarray and shape == (0,) and code in (b'b', 'b')
    _expect(is_empty, '_reconstruct', (cls, shape, code))
    return np.empty(0, np.int8)


def _scalar(dtype: Any, content: Any) -> np.generic:
    is_plain = isinstance(dtype, np.dtype) and type(content) is bytes
    _expect(is_plain and dtype.itemsize == len(content), 'scalar', (dtype, content))
    return np.frombuffer(content, dtype)[0]


def _layout(name: Any) -> torch.layout:
    _expect(type(name) is str and name in _LAYOUTS, '_get_layout', name)
    return _LAYOUTS[name]


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor within the bounds of its storage."""
    size, stride = tuple(size), tuple(stride)
    is_tensor = (
        isinstance(storage, TypedStorage)
        and all(map(_is_count, (offset, *size, *stride)))
        and len(size) == len(stride)
    )
    _expect(is_tensor, '_rebuild_tensor', (offset, size, stride))
    dtype = storage.dtype if dtype is None else dtype
    untyped = storage._untyped_storage
    capacity = untyped.nbytes() // dtype.itemsize
    count = math.prod(size)
    end = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1
    if (count and end > capacity) or count > max(capacity, _MAX_REPEATED):
        raise UnsafeCheckpointError(
            f'it has a tensor of shape {describe(size)} and stride {describe(stride)} in a storage '
            f'of {capacity} elements'
        )
    return torch.empty(0, dtype=dtype, device=untyped.device).set_(untyped, offset, size, stride)


def _tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    return _finish(_tensor(storage, offset, size, stride), requires_grad, hooks, metadata)


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
    _expect(isinstance(dtype, torch.dtype), '_rebuild_tensor_v3', dtype)
    return _finish(_tensor(storage, offset, size, stride, dtype), requires_grad, hooks, metadata)


def _finish(tensor: Tensor, requires_grad: Any, hooks: Any, metadata: Any) -> Tensor:
    _expect(not hooks and type(requires_grad) is bool, '_rebuild_tensor', (requires_grad, hooks))
    if metadata:
        _expect(type(metadata) is dict and set(metadata) <= {'conj', 'neg'}, 'tensor', metadata)
        if metadata.get('conj'):
            tensor = tensor.conj()
        if metadata.get('neg'):
            tensor = torch._neg_view(tensor)
    return tensor.requires_grad_() if requires_grad else tensor


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> nn.Parameter:
    is_parameter = isinstance(data, Tensor) and type(requires_grad) is bool and not hooks
    _expect(is_parameter, '_rebuild_parameter', (data, requires_grad, hooks))
    parameter = nn.Parameter(data, requires_grad)
    if state is not None:
        _expect(type(state) is dict, '_rebuild_parameter_with_state', state)
        check_attributes(nn.Parameter, state)
        vars(parameter).update(state)
    return parameter


def check_attributes(cls: type, state: dict) -> None:
    """Refuse to hide the attributes of a class behind others of an instance."""
    for name in state:
        if type(name) is not str or name.startswith('__') or hasattr(cls, name):
            raise UnsafeCheckpointError(
                f'it sets the attribute {describe(name)} of an object of type {cls.__name__!r}'
            )


def _sparse_tensor(layout: Any, data: Any) -> Tensor:
    """Not checked yet: the indices may have no values before all of the file is read."""
    if layout == torch.sparse_coo:
        indices, values, size, *is_coalesced = data
        return torch.sparse_coo_tensor(
            indices,
            values,
            size,
            check_invariants=False,
            is_coalesced=is_coalesced[0] if is_coalesced else None,
        )
    compressed, plain, values, size = data
    return torch.sparse_compressed_tensor(
        compressed, plain, values, size, layout=layout, check_invariants=False
    )


def check_sparse(tensor: Tensor) -> None:
    """Raise an error unless the indices of a sparse tensor are within its shape."""
    if tensor.layout == torch.sparse_coo:
        torch.sparse_coo_tensor(
            tensor._indices(), tensor._values(), tensor.shape, check_invariants=True
        )
        return
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    torch.sparse_compressed_tensor(
        tensor.crow_indices() if by_row else tensor.ccol_indices(),
        tensor.col_indices() if by_row else tensor.row_indices(),
        tensor.values(),
        tensor.shape,
        layout=tensor.layout,
        check_invariants=True,
    )


_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}
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
    'torch._utils._rebuild_tensor': _own(_tensor),
    'torch._utils._rebuild_tensor_v2': _own(_tensor_v2),
    'torch._utils._rebuild_tensor_v3': _own(_tensor_v3),
    'torch._utils._rebuild_parameter': _own(_parameter),
    'torch._utils._rebuild_parameter_with_state': _own(_parameter),
    'torch._utils._rebuild_sparse_tensor': _own(_sparse_tensor),
    'torch.serialization._get_layout': _own(_layout),
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
    'builtins.slice': (slice, slice),
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
