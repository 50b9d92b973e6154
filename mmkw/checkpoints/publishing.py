"""Checkpoints of training runs, reduced to what others need."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import write_whole
from .loading import load_checkpoint
from .tensor_checks import check_names, check_values


def publish_checkpoint(
    src: str | os.PathLike, dst: str | os.PathLike, use_ema: bool = True
) -> Path:
    """Write the weights and the metadata of a checkpoint, without what only training needs.

    Optimizer, parameter schedulers, message hub and the second copy of averaged weights are left
    out. As in OpenMMLab, the first 8 digits of the file's SHA-256 end its name, and the same
    checkpoint gives the same file again. ``torch.load(..., weights_only=True)`` reads it.

    Args:
        src: a checkpoint of a run, or a state dict. Read without running code from it.
        dst: what the name of the result begins with; a suffix ``.pth`` is put after the hash.
        use_ema: of a run with ``EMAHook``, publish the averaged weights, by which the run was
            validated. ``False`` publishes those that the optimizer moved. Defaults to ``True``.

    Returns:
        The path of the result, such as ``model-0a1b2c3d.pth`` for ``model.pth``.

    Raises:
        ValueError: if ``src`` holds no state dict, a tensor is not finite, the metadata holds
            something other than plain values, or ``use_ema=False`` finds no averages.
        CheckpointError: if ``src`` cannot be read safely (see :func:`load_checkpoint`).
        FileNotFoundError: if ``src`` or the folder of ``dst`` is missing.
    """
    checkpoint = load_checkpoint(src)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'{src} is of type {type(checkpoint).__name__}; expected a dict')
    state_dict = checkpoint.get('state_dict', checkpoint)
    meta = checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
    _check_weights(src, state_dict)
    weights = OrderedDict(state_dict)
    if not use_ema:
        weights.update(_before_averaging(src, checkpoint.get('ema_state_dict')))
    for name, value in weights.items():
        # A slice would bring all of its storage along.
        weights[name] = value.detach().clone()
    if hasattr(state_dict, '_metadata'):
        # torch keeps the versions of modules there, as an attribute of its own.
        weights._metadata = state_dict._metadata  # type: ignore[attr-defined]

    with io.BytesIO() as buffer:
        torch.save(dict(meta=_plain(meta, f'{src}: meta'), state_dict=weights), buffer)
        content = buffer.getvalue()
    dst = Path(dst)
    stem = dst.name[: -len('.pth')] if dst.suffix == '.pth' else dst.name
    path = dst.with_name(f'{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth')
    write_whole(content, path, sync=True)
    return path


def _before_averaging(src: Any, ema_state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """MMEngine keeps the averages in ``state_dict``, and what they replace as ``module.*``."""
    if not ema_state_dict:
        raise ValueError(
            f'{src} has no averaged weights (no ema_state_dict), so there are none to leave out; '
            'publish it with use_ema=True'
        )
    start = 'module.'
    replaced = {
        name[len(start) :]: value
        for name, value in ema_state_dict.items()
        if name.startswith(start)
    }
    _check_weights(src, replaced)
    return replaced


def _check_weights(src: Any, state_dict: Any) -> None:
    try:
        check_names(state_dict)
        for name, value in state_dict.items():
            check_values(name, value)
    except ValueError as error:
        raise ValueError(f'{src} cannot be published: {error}') from error


def _plain(value: Any, where: str) -> Any:
    """``value`` in types that torch reads without trust."""
    if isinstance(value, Mapping):
        return {key: _plain(item, f'{where}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, where) for item in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f'{where} is of type {type(value).__name__}; expected numbers and text, and lists and '
        'dicts of them. Take it out of the checkpoint first'
    )
