"""Converting checkpoints of the authors' releases."""

from __future__ import annotations

import hashlib
import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from .loading import load_checkpoint
from .released_kernel_warehouse import identify_kernel_warehouse, is_kernel_warehouse
from .released_networks import CLASSIFIER, DETECTOR
from .released_odconv import identify_odconv, is_odconv
from .saving import save_checkpoint
from .tensor_checks import FLOATS, check_names, check_values, same_but_ones

# Where released files hold state dicts; the first one that is there is the one to evaluate.
_WEIGHTS = ('model_ema', 'model', 'state_dict')
_BACKBONE = 'backbone.'
# What the backbone of a detector carries along of the classifier that it was.
_UNUSED = re.compile(r'(fc|classifier|norm|head)\.')
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_Path = Union[str, os.PathLike]
_StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class ReleasedModel:
    """What a released file holds, for mmkw.

    Attributes:
        checkpoint: ``state_dict`` and ``meta``, see :func:`convert_released`.
        mapping: names of the released tensors that were used -> their names in ``state_dict``.
        unused: names of the others, which only the classifier needs that a detector's backbone was.
    """

    checkpoint: dict[str, Any]
    mapping: dict[str, str]
    unused: list[str]


def convert_released(src: _Path, dst: _Path | None = None, weights: str = 'auto') -> dict:
    """Turn a released KernelWarehouse or ODConv classifier or Mask R-CNN into an mmkw checkpoint.

    Which ResNet, MobileNetV2 or ConvNeXt it is, and of which budget (or, of ODConv, how many
    kernels), is found from names and shapes, and the result is verified by loading it strictly
    into that classifier or detector. It suits ``load_from`` and strict loading in the model of the
    matching config, and
    ``init_cfg=dict(type='Pretrained', checkpoint=dst, prefix='backbone.')`` in a detector's
    backbone.

    The released detectors are of MMDetection 2. Neck and heads of its Mask R-CNN have the names
    and numbers of MMDetection 3: since version 2.0 the background is the last class, boxes are as
    wide as ``x2 - x1``, and heads after the proposals are in ``roi_head``. What changed is around
    the state dict: the classes, which are in ``meta`` as ``dataset_meta``.

    All floating-point tensors are float32 in the result, whatever they were.

    Args:
        src: a released file, a pickled dict with the state dict under ``model`` and, if weights
            were averaged in training, those under ``model_ema``, or in MMDetection's files under
            ``state_dict``; or such a state dict itself. Read without running code from it.
        dst: where to write the result, in one step; in the safetensors format if it ends in
            ``.safetensors``. Defaults to ``None``, nowhere.
        weights: ``'model'``, ``'model_ema'``, ``'state_dict'`` or, by default, ``'auto'``: the
            averaged weights, by which the release is evaluated, where there are any.

    Returns:
        The mmkw checkpoint: ``state_dict`` and ``meta``. The latter has the class of the ``model``,
        the configs of the ``backbone`` and of a classifier's ``head``, the file ``config`` for such
        a model (``None`` if there is none), a detector's ``dataset_meta``; and where the weights
        came from: ``source``, the file's name, ``source_sha256``, which of the ``weights`` in it
        were taken (``None`` where the file is itself a state dict) and in which ``dtypes`` they
        were.

    Raises:
        ValueError: if ``src`` holds no released model, or not the ``weights`` asked for, or tensors
            that are not finite or of a wrong type; it says which names, shapes or types are off.
        UnsafeCheckpointError: if its pickle asks for classes that checkpoints do not need.
        FileNotFoundError: if ``src`` or the folder of ``dst`` is missing.
        ImportError: if ``dst`` ends in ``.safetensors`` and that package is not installed.
    """
    checkpoint = read_released(src, weights).checkpoint
    if dst is not None:
        save_checkpoint(checkpoint, dst)
    return checkpoint


def read_released(src: _Path, weights: str = 'auto') -> ReleasedModel:
    """What :func:`convert_released` writes, and which tensor went where.

    Args:
        src, weights: see there, as for the errors raised.
    """
    checkpoint = load_checkpoint(src)
    try:
        weights, released = _select_weights(checkpoint, weights)
        meta, state_dict, mapping = _convert(released)
        if meta['model'] == DETECTOR:
            meta['dataset_meta'] = _coco_classes(checkpoint)
    except ValueError as error:
        raise ValueError(f'{src} cannot be converted: {error}') from error
    meta.update(
        source=os.path.basename(src),
        source_sha256=hashlib.sha256(Path(src).expanduser().read_bytes()).hexdigest(),
        weights=weights,
        dtypes=sorted(
            {str(value.dtype) for value in released.values() if value.is_floating_point()}
        ),
    )
    return ReleasedModel(
        dict(state_dict=state_dict, meta=meta),
        mapping=mapping,
        unused=[name for name in released if name not in mapping],
    )


def _select_weights(checkpoint: Any, weights: str) -> tuple[str | None, _StateDict]:
    if weights not in ('auto', *_WEIGHTS):
        raise ValueError(f'weights must be one of {("auto", *_WEIGHTS)}, but got {weights!r}')
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'expected a dict, but found {type(checkpoint).__name__}')
    if weights == 'auto':
        weights = next((name for name in _WEIGHTS if name in checkpoint), None)
    elif weights not in checkpoint:
        raise ValueError(f'it has no {weights!r}, only {list(checkpoint)[:5]}')
    state_dict = checkpoint if weights is None else checkpoint[weights]
    if not isinstance(state_dict, Mapping) or not (
        is_kernel_warehouse(map(str, state_dict)) or is_odconv(map(str, state_dict))
    ):
        found = list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(state_dict)
        raise ValueError(
            f'not a released KernelWarehouse or ODConv checkpoint: expected a dict whose `model` '
            f'or `state_dict` holds tensors named warehouse_manager.weights.* (KernelWarehouse) or '
            f'*.attention.channel_fc.* (ODConv), but found {found}'
        )
    check_names(state_dict)
    for name, value in state_dict.items():
        check_values(name, value)
    return weights, state_dict


def _coco_classes(checkpoint: Mapping) -> dict[str, Any]:
    """MMDetection's ``dataset_meta``, which all the released detectors share."""
    # Classifiers are converted without MMDetection, too.
    from mmdet.datasets import CocoDataset

    meta = checkpoint.get('meta')
    classes = meta.get('CLASSES') if isinstance(meta, Mapping) else None
    expected = CocoDataset.METAINFO['classes']
    if classes is not None and classes not in (expected, list(expected)):
        is_list = isinstance(classes, (tuple, list))
        found = f'{len(classes)}, beginning with {classes[:3]}' if is_list else repr(classes)[:80]
        raise ValueError(
            f"its meta['CLASSES'] are not COCO's {len(expected)}, beginning with {expected[:3]}: "
            f'found {found}'
        )
    return dict(CocoDataset.METAINFO)


def _convert(released: _StateDict) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """What the model is, its state dict, and the new names of the tensors in it."""
    names = _without_module(released)
    is_detector = any(name.startswith(_BACKBONE) for name in names.values())
    targets = {}
    if is_detector:
        targets = {
            name: target for name, target in names.items() if not target.startswith(_BACKBONE)
        }
        names = {
            name: target[len(_BACKBONE) :]
            for name, target in names.items()
            if name not in targets and not _UNUSED.match(target[len(_BACKBONE) :])
        }
    kind = DETECTOR if is_detector else CLASSIFIER
    identify = identify_odconv if is_odconv(names.values()) else identify_kernel_warehouse
    identified = identify(kind, names, released)
    meta, model = identified.meta, identified.model
    targets.update(identified.targets)
    expected = model.state_dict()
    state_dict = {}
    for name, target in targets.items():
        value = released[name]
        if target in expected:
            value = _fit(name, value, expected[target])
        state_dict[target] = value
    try:
        # KernelWarehouse layers would take a plain kernel in the place of their cells.
        unknown = [target for target in state_dict if target not in expected]
        if unknown:
            raise ValueError(f'the model has no {", ".join(unknown)}')
        # The release stores no temperature; its models are trained, so it is that of new ones.
        model.load_state_dict(state_dict, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f'it looks like {meta["model"]} with {meta["backbone"]}, but is damaged or was changed '
            f'since its release: {textwrap.shorten(str(error), 600)}'
        ) from error
    mapping = {name: targets[name] for name in released if name in targets}
    return meta, dict(model.state_dict()), mapping


def _without_module(names: Iterable[str]) -> dict[str, str]:
    """Names without what DistributedDataParallel puts before them, by the names themselves."""
    stripped = {name: name.removeprefix('module.') for name in names}
    for name, short_name in stripped.items():
        if name != short_name and short_name in stripped:
            raise ValueError(f'{name} is there twice, with and without `module.`; remove one')
    return stripped


def _fit(name: str, value: Tensor, expected: Tensor) -> Tensor:
    """A copy of a released tensor, fitted to the model's type and dimensions of size 1."""
    types = FLOATS if expected.is_floating_point() else _INTEGERS
    if value.dtype not in types:
        raise ValueError(
            f'{name} is of type {value.dtype}; expected one of {", ".join(map(str, types))}'
        )
    # Of its own memory, since the model takes it over: files may hold views of larger tensors.
    value = value.to(expected.dtype, copy=True, memory_format=torch.contiguous_format)
    return value.reshape(expected.shape) if same_but_ones(value, expected) else value
