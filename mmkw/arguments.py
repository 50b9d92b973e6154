"""Checks of arguments: errors that name what was probably meant, and what counts as a number."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Callable, TypeVar, cast

_Function = TypeVar('_Function', bound=Callable[..., Any])


def is_number(value: Any) -> bool:
    """Whether this is a finite number. ``True`` and ``False`` are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole_number(value: Any, least: int = 1) -> bool:
    """Whether this is an integer of at least ``least``. ``True`` and ``False`` are not."""
    return isinstance(value, Integral) and is_number(value) and int(value) >= least


def check_positive(name: str, value: Any, whole: bool = False) -> None:
    """Raise an error unless an argument is a positive number.

    Args:
        name: of the argument.
        value: what the user wrote.
        whole: whether it has to be an integer. Defaults to ``False``.

    Raises:
        ValueError: if it is none.
    """
    if not (is_whole_number(value) if whole else is_number(value) and value > 0):
        kind = 'integer' if whole else 'number'
        raise ValueError(f'{name} must be a positive {kind}, but got {value!r}')


def check_names(
    owner: str,
    names: Iterable[Any],
    known: Sequence[str],
    kind: str = 'argument',
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error that names the first unknown name and the known one nearest to it.

    Args:
        owner: whose arguments they are, as the user knows it.
        names: what the user wrote.
        known: what there is. Where none of it is near, the error lists it all.
        kind: what to call a name. Defaults to ``'argument'``.
        error: the class of the error. Defaults to ``ValueError``.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.7)
            hint = f'did you mean {near[0]!r}?' if near else f'its {kind}s are {", ".join(known)}'
            raise error(f'{owner} has no {kind} {name!r}; {hint}')


def checks_arguments(*others: str) -> Callable[[_Function], _Function]:
    """Decorate ``__init__`` so that a wrong argument is an error by :func:`check_names`.

    Python's own error names the class that has the ``__init__``, or to which it hands its
    ``**kwargs``, which are not always the one that the user wrote.

    Args:
        others: arguments in ``**kwargs`` that ``__init__`` does not hand on.

    Raises:
        TypeError: by the decorated ``__init__``, as Python does.
    """

    def decorate(init: _Function) -> _Function:
        @functools.wraps(init)
        def checked(self, *args, **kwargs) -> None:
            cls = type(self)
            known = [*_arguments_from(cls, checked), *others]
            check_names(cls.__name__, kwargs, known, error=TypeError)
            init(self, *args, **kwargs)

        return cast(_Function, checked)

    return decorate


def checks_arguments_of(name: str) -> Callable[[_Function], _Function]:
    """The same as :func:`checks_arguments` for a function that users know as ``name``."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def checked(*args, **kwargs) -> Any:
            check_names(name, kwargs, _named(function), error=TypeError)
            return function(*args, **kwargs)

        return cast(_Function, checked)

    return decorate


def _arguments_from(cls: type, init: Callable) -> list[str]:
    """The arguments of the ``__init__`` of a class or base, with those of its ``**kwargs``."""
    names: list[str] = []
    inits = [vars(base)['__init__'] for base in cls.__mro__ if '__init__' in vars(base)]
    for function in itertools.dropwhile(lambda function: function is not init, inits):
        names += [name for name in _named(function)[1:] if name not in names]
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return names


def _named(function: Callable) -> list[str]:
    """The arguments of a function that can be given by name; ``self`` included."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in by_name]
