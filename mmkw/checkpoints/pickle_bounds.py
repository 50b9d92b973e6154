"""Limits for what a pickle builds.

A pickle can use one object in many places. A few bytes then stand for a structure that is
endless, or exponentially large, to whoever walks through it: to print it, to hash it, to copy it.
It can also choose keys with one hash, each of which Python compares with all the others.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from .errors import UnsafeCheckpointError

MAX_DEPTH = 100
MAX_SIZE = 10_000_000
_MAX_TEXT = 80
# Python hashes text with a secret, and numbers of up to 64 bits with few of one hash.
_PLAIN_KEYS = (str, bytes, int, float, bool, type(None))
# Whoever writes the file can give any number of these the same hash.
_COMPOUND_KEYS = (
    *(complex, frozenset, torch.Size, torch.dtype, torch.device),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
)
_MAX_KEY_SIZE = 1000
_MAX_DIMENSIONS = 64
_WITH_ATTRIBUTES = (argparse.Namespace, HistoryBuffer, nn.Parameter)


def describe(value: Any, depth: int = 2) -> str:
    """A short ``repr``, whatever the value holds."""
    kind = type(value)
    if kind in (str, bytes):
        return repr(value[:_MAX_TEXT]) + ('...' if len(value) > _MAX_TEXT else '')
    if kind in (bool, float, type(None)) or (kind is int and value.bit_length() < 64):
        return repr(value)
    if kind is tuple and depth:
        inner = ', '.join(describe(item, depth - 1) for item in value[:5])
        return f'({inner}{", ..." if len(value) > 5 else ""})'
    name = getattr(value, '__qualname__', None)
    if isinstance(name, str):
        return f'{value.__module__}.{name}'
    return f'an object of type {kind.__name__!r}'


def describe_error(error: BaseException) -> str:
    """Type and message of an error, if that is short."""
    name = type(error).__name__
    if not error.args or not all(type(arg) is str and arg for arg in error.args):
        return name
    text = str(error)
    return f'{name}: {text[:300]}{"..." if len(text) > 300 else ""}'


def expect(condition: bool, name: str, args: Any) -> None:
    """Refuse a call of ``name`` with these arguments unless the condition holds.

    Raises:
        UnsafeCheckpointError: if it does not.
    """
    if not condition:
        raise UnsafeCheckpointError(
            f'it calls {name!r} with {describe(args)}, as no checkpoint does'
        )


def is_count(value: Any) -> bool:
    """Whether this is an integer that can be a size."""
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: Any) -> bool:
    """Whether this is a tuple of sizes, of no more dimensions than arrays have."""
    is_short = type(value) in (tuple, torch.Size) and len(value) <= _MAX_DIMENSIONS
    return is_short and all(map(is_count, value))


def check_attributes(cls: type, state: dict) -> None:
    """Refuse to hide the attributes of a class behind others of an instance.

    Raises:
        UnsafeCheckpointError: if a name in ``state`` is one of the class or begins with ``__``.
    """
    for name in state:
        if type(name) is not str or name.startswith('__') or hasattr(cls, name):
            raise UnsafeCheckpointError(
                f'it sets the attribute {describe(name)} of an object of type {cls.__name__!r}'
            )


def is_compound(key: Any, extra_kinds: Iterable[type] = ()) -> bool:
    """Whether a key of a dict, or member of a set, is other than text or a number.

    Args:
        key: what is to be hashed.
        extra_kinds: types that are admitted, too.

    Raises:
        UnsafeCheckpointError: if it is of a type that checkpoints do not have there, such as tuples
            of more than 1000 values or integers beyond 64 bits.
    """
    if type(key) in _PLAIN_KEYS and _is_key(key):
        return False
    if isinstance(key, np.generic):
        return key.dtype.kind == 'c'
    waiting, size = [key], 0
    while waiting:
        item = waiting.pop()
        if type(item) is tuple:
            size += len(item)
            waiting += item[: _MAX_KEY_SIZE + 1]
        if size > _MAX_KEY_SIZE or not (_is_key(item) or type(item) in extra_kinds):
            raise UnsafeCheckpointError(
                f'it has {describe(key)} as a key; expected text, a number or a short tuple of them'
            )
    return True


def _is_key(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return value.bit_length() <= 64
    return kind in (tuple, *_PLAIN_KEYS, *_COMPOUND_KEYS) or isinstance(value, np.generic)


def structure_size(root: Any) -> int:
    """How many values a structure of lists, tuples, sets and dicts has when it is written out.

    Keys other than text and numbers count as what it takes to compare them with each other.

    Raises:
        UnsafeCheckpointError: if it contains itself, is nested deeper than 100 levels, or holds
            more than 10 million values.
    """
    if not _is_container(root):
        return 1
    done: dict[int, tuple[int, int]] = {}
    in_progress: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting[-1]
        if id(value) in done:
            waiting.pop()
            continue
        items = _items(value)
        inner = [item for item in items if _is_container(item)]
        missing = {id(item): item for item in inner if id(item) not in done}
        if missing:
            in_progress.add(id(value))
            if missing.keys() & in_progress:
                raise UnsafeCheckpointError('it holds a structure that contains itself')
            waiting += missing.values()
            continue
        sizes, depths = zip(*(done[id(item)] for item in inner)) if inner else ((), ())
        size = 1 + len(items) - len(inner) + sum(sizes) + _size_of_keys(value)
        depth = 1 + max(depths, default=0)
        if depth > MAX_DEPTH or size > MAX_SIZE:
            raise UnsafeCheckpointError(
                f'it holds a structure with more than {MAX_DEPTH} levels or {MAX_SIZE} values when '
                f'it is written out; checkpoints have none'
            )
        done[id(value)] = size, depth
        in_progress.discard(id(value))
        waiting.pop()
    return done[id(root)][0]


def _is_container(value: Any) -> bool:
    kind = type(value)
    return (
        kind in (list, tuple, set, frozenset) or kind in _WITH_ATTRIBUTES or isinstance(value, dict)
    )


def _items(container: Any) -> list:
    if type(container) in (list, tuple, set, frozenset):
        return list(container)
    items = [*dict.values(container)] if isinstance(container, dict) else []
    return [*items, *getattr(container, '__dict__', {}).values()]


def _size_of_keys(container: Any) -> int:
    keys = container if isinstance(container, (dict, set, frozenset)) else ()
    return comparisons(sum(type(key) not in _PLAIN_KEYS for key in keys))


def comparisons(compound_keys: int) -> int:
    """How many values could be copied while so many keys are compared, all being of one hash."""
    return compound_keys**2 // 8
