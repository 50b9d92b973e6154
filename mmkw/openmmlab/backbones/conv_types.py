"""An error for a ``conv_cfg`` whose type does not exist: MMCV's does not name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.registry import MODELS

from ...arguments import check_names

_ERROR_OF_MMCV = 'Cannot find None in registry'


@contextmanager
def naming_conv_types(config: Any) -> Iterator[None]:
    """While a network is built from a config, name the unknown type of a ``conv_cfg`` in it.

    Args:
        config: of the network, with parts in dicts and lists.

    Raises:
        ValueError: instead of MMCV's KeyError; says which type there is no convolution of, and
            which one is nearest.
    """
    try:
        yield
    except KeyError as error:
        if _ERROR_OF_MMCV not in str(error):
            raise
        names = [name for name in MODELS.module_dict if 'Conv' in name or name.startswith('DCN')]
        with MODELS.switch_scope_and_registry(None) as registry:
            unknown = [name for name in _conv_types(config) if registry.get(name) is None]
        check_names('conv_cfg', unknown, sorted(names), 'type')
        raise


def _conv_types(config: Any) -> Iterator[str]:
    """The types of all ``conv_cfg`` in a config."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if key == 'conv_cfg' and isinstance(value, dict) and isinstance(value.get('type'), str):
            yield value['type']
        elif isinstance(value, (dict, list, tuple)):
            yield from _conv_types(value)
