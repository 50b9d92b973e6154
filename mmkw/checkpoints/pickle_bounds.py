"""Limits for what a pickle builds.

A pickle can use one object in many places. A few bytes then stand for a structure that is
endless, or exponentially large, to whoever walks through it: to print it, to hash it, to copy it.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .errors import UnsafeCheckpointError

MAX_DEPTH = 100
MAX_SIZE = 10_000_000
_MAX_TEXT = 80
_MAX_KEY_DEPTH = 8
_KEYS = (
    *(str, bytes, int, float, bool, complex, type(None), frozenset),
    *(torch.Size, torch.dtype, torch.device),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
)


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
    if not all(type(arg) is str for arg in error.args):
        return name
    text = str(error)
    return f'{name}: {text[:300]}{"..." if len(text) > 300 else ""}'


def key_size(key: Any, extra_kinds: Iterable[type] = (), depth: int = _MAX_KEY_DEPTH) -> int:
    """The number of values in a key of a dict or member of a set, which are hashed every time.

    Raises:
        UnsafeCheckpointError: if it is of a type that checkpoints do not have there, such as deeply
            nested tuples or integers beyond 64 bits.
    """
    kind = type(key)
    if kind is tuple and depth and len(key) <= 1000:
        return 1 + sum(key_size(item, extra_kinds, depth - 1) for item in key)
    admitted = kind in _KEYS or kind in extra_kinds or isinstance(key, np.generic)
    if not admitted or (kind is int and key.bit_length() > 64):
        raise UnsafeCheckpointError(
            f'it has {describe(key)} as a key; expected text, a number or a short tuple of them'
        )
    return 1


def structure_size(root: Any) -> int:
    """How many values a structure of lists, tuples, sets and dicts has when it is written out.

    Raises:
        UnsafeCheckpointError: if it contains itself, is nested deeper than 100 levels, or holds
            more than 10 million values.
    """
    done: dict[int, tuple[int, int]] = {}
    in_progress: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting[-1]
        if id(value) in done:
            waiting.pop()
            continue
        items = _items(value)
        inner = [item for item in items if _items(item)]
        missing = [item for item in inner if id(item) not in done]
        if missing and id(value) not in in_progress:
            in_progress.add(id(value))
            if any(id(item) in in_progress for item in missing):
                raise UnsafeCheckpointError('it holds a structure that contains itself')
            waiting += missing
            continue
        sizes, depths = zip(*(done[id(item)] for item in inner)) if inner else ((), ())
        size, depth = 1 + len(items) - len(inner) + sum(sizes), 1 + max(depths, default=0)
        if depth > MAX_DEPTH or size > MAX_SIZE:
            raise UnsafeCheckpointError(
                f'it holds a structure with more than {MAX_DEPTH} levels or {MAX_SIZE} values when '
                f'it is written out; checkpoints have none'
            )
        done[id(value)] = size, depth
        in_progress.discard(id(value))
        waiting.pop()
    return done[id(root)][0]


def _items(value: Any) -> list:
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return list(value)
    if kind is argparse.Namespace:
        return list(vars(value).values())
    if isinstance(value, dict):
        return [*dict.values(value), *getattr(value, '__dict__', {}).values()]
    return []
