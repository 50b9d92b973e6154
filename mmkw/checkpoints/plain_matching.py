"""Matching the checkpoint of a plain network with the network that is to take its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..networks.replacing import some_of
from ..openmmlab.backbones.checkpoint_names import match_layer_names, rename_layer
from ..openmmlab.backbones.start_record import OUTPUT_NORM
from .plain_tensor_names import FORMATS, rename
from .tensor_checks import FLOATS, check_names, check_values, same_but_ones

# Where checkpoints hold their state dict. Averaged weights are the ones to evaluate; MMEngine
# keeps those in `state_dict`.
_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
_BACKBONE = 'backbone.'
_CLASSIFIERS = ('head.fc.', 'head.layers.head.')
_KW_NAME = re.compile(r'(^|\.)warehouse(s|_manager)?\.')
# Files from before torch 0.4.1, and those converted from Caffe, do not count batches.
_COUNTER = '.num_batches_tracked'


@dataclass(frozen=True)
class PlainMatch:
    """What of a plain checkpoint a network takes.

    Attributes:
        source_format: of the names in the checkpoint, a key of
            :data:`plain_tensor_names.FORMATS`.
        source: its state dict, without ``module.`` before all names.
        targets: names in ``source`` of the tensors to take -> their names in the network.
        fresh: layers outside the backbone that the checkpoint lacks, or has for another number
            of classes.
    """

    source_format: str
    source: dict[str, Tensor]
    targets: dict[str, str]
    fresh: list[str]


def match_plain(checkpoint: Any, expected: Mapping[str, Tensor], is_backbone: bool) -> PlainMatch:
    """Find which tensors of a checkpoint are those of a plain network.

    Args:
        checkpoint: the state dict, or a dict that holds it, as of :func:`warm_start`.
        expected: the state dict of the plain network, of which only shapes and types count.
        is_backbone: whether that network is a bare backbone, in which all layers have to be there.
            Otherwise those outside its ``backbone`` may be missing.

    Raises:
        ValueError: if it holds no state dict or that of a KW network, or the names are of no known
            format; if tensors are missing, left over, of other shapes or not finite.
    """
    prefix = _BACKBONE if is_backbone else ''
    expected = {prefix + name: value for name, value in expected.items()}
    source = _find_state_dict(checkpoint)
    source_format, targets = _recognise(source, expected, prefix)
    used = _check_backbone(targets, expected)
    heads, fresh = _fit_heads(source, targets, expected)
    used.update(heads)
    for name, target in used.items():
        _check_tensor(name, source[name], expected[target])
    return PlainMatch(
        source_format,
        source,
        targets={name: target[len(prefix) :] for name, target in used.items()},
        fresh=fresh,
    )


def _find_state_dict(checkpoint: Any) -> dict[str, Tensor]:
    found = checkpoint
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            found = checkpoint[wrapper]
            break
    check_names(found)
    for name in found:
        if _KW_NAME.search(name):
            raise ValueError(
                f'it is of a KernelWarehouse network, as it has {name}; load it as it is or, if '
                f"it is from the authors' release, convert it with released_to_mmkw.py"
            )
        if f'module.{name}' in found:
            raise ValueError(f"it has both {name!r} and 'module.{name}'; remove one of them")
    if all(name.startswith('module.') for name in found):
        # Saved from DistributedDataParallel.
        return {name[len('module.') :]: value for name, value in found.items()}
    return dict(found)


def _recognise(
    source: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str
) -> tuple[str, dict[str, str | None]]:
    """The format by which most names are the network's, and each tensor's name in it."""
    classifier = next(
        (name for name in _CLASSIFIERS if any(other.startswith(name) for other in expected)),
        _CLASSIFIERS[0],
    )

    def target(name: str, rules) -> str | None:
        if prefix + name in expected:
            return prefix + name
        renamed = rename(name, rules)
        if renamed is not None and renamed.startswith(_CLASSIFIERS[0]):
            return classifier + renamed[len(_CLASSIFIERS[0]) :]
        return renamed

    best, best_score = None, (0, 0)
    for source_format, rules in FORMATS.items():
        targets = {name: target(name, rules) for name in source}
        targets = _with_layer_names(source, targets, expected)
        in_backbone = [new for new in targets.values() if new and new.startswith(_BACKBONE)]
        # A bare backbone finds its own names in every format. That of backbones knows the others
        # in such a file, too, so that those of a deeper network are not overlooked.
        score = (sum(new in expected for new in in_backbone), len(in_backbone) if prefix else 0)
        if score[0] and score > best_score:
            best, best_score = (source_format, targets), score
    if best is None:
        needed = [name[len(prefix) :] for name in expected if name.startswith(_BACKBONE)]
        raise ValueError(
            f'its names are of no known format for this network: it has {_some(source)}, but the '
            f'plain network has {_some(needed)}; known are: {"; ".join(FORMATS)}'
        )
    _check_unique(best[1])
    return best


def _with_layer_names(
    source: Mapping[str, Tensor],
    targets: Mapping[str, str | None],
    expected: Mapping[str, Tensor],
) -> dict[str, str | None]:
    """The targets, with the names that layers of the backbone have in the network."""
    inside = {
        name: target[len(_BACKBONE) :]
        for name, target in targets.items()
        if target is not None and target.startswith(_BACKBONE)
    }
    layers = match_layer_names(
        {target: source[name].shape for name, target in inside.items()},
        {
            name[len(_BACKBONE) :]: value.shape
            for name, value in expected.items()
            if name.startswith(_BACKBONE)
        },
    )
    renamed = {name: _BACKBONE + rename_layer(new, layers) for name, new in inside.items()}
    return {**targets, **renamed}


def _is_output_norm(name: str) -> bool:
    return name.startswith(_BACKBONE) and bool(OUTPUT_NORM.fullmatch(name[len(_BACKBONE) :]))


def _check_unique(targets: Mapping[str, str | None]) -> None:
    first: dict[str, str] = {}
    for name, target in targets.items():
        if target is not None and first.setdefault(target, name) != name:
            raise ValueError(f'{first[target]!r} and {name!r} both mean {target!r}; remove one')


def _check_backbone(
    targets: Mapping[str, str | None], expected: Mapping[str, Tensor]
) -> dict[str, str]:
    """The tensors of the backbone, which has to be complete."""
    used = {
        name: target
        for name, target in targets.items()
        if target in expected and target.startswith(_BACKBONE)
    }
    present = set(used.values())
    missing = [
        name
        for name in expected
        if name.startswith(_BACKBONE)
        and name not in present
        and not name.endswith(_COUNTER)
        and not _is_output_norm(name)
    ]
    surplus = [
        name
        for name, target in targets.items()
        if target is None
        or (target.startswith(_BACKBONE) and target not in expected and not _is_output_norm(target))
    ]
    if missing or surplus:
        mismatch = [f'it lacks {_some(missing)}'] if missing else []
        if surplus:
            mismatch.append(f'the network has no place for its {_some(surplus)}')
        raise ValueError(
            f'{" and ".join(mismatch)}; is it damaged, or of another architecture or depth than '
            f'the network?'
        )
    return used


def _fit_heads(
    source: Mapping[str, Tensor],
    targets: Mapping[str, str | None],
    expected: Mapping[str, Tensor],
) -> tuple[dict[str, str], list[str]]:
    """The tensors outside the backbone that fit, and the layers that have to start fresh."""
    names = {target: name for name, target in targets.items() if target is not None}
    tensors_by_layer: dict[str, list[str]] = {}
    for target in expected:
        if not target.startswith(_BACKBONE):
            tensors_by_layer.setdefault(target.rpartition('.')[0], []).append(target)
    used, fresh = {}, []
    for layer, tensors in tensors_by_layer.items():
        found = [target for target in tensors if target in names]
        if not found or all(
            _is_of_other_length(source[names[target]], expected[target]) for target in found
        ):
            fresh.append(layer)
            continue
        missing = [
            target for target in tensors if target not in names and not target.endswith(_COUNTER)
        ]
        if missing:
            raise ValueError(
                f'it has {names[found[0]]}, but lacks {_some(missing)}; is it damaged?'
            )
        used.update({names[target]: target for target in found})
    return used, fresh


def _is_of_other_length(value: Tensor, expected: Tensor) -> bool:
    """Whether it would fit a layer with another number of outputs."""
    shape, other = _without_ones(value), _without_ones(expected)
    return len(shape) == len(other) > 0 and shape[0] != other[0] and shape[1:] == other[1:]


def _check_tensor(name: str, value: Tensor, expected: Tensor) -> None:
    check_values(name, value)
    if not same_but_ones(value, expected):
        hint = ''
        if name.endswith(('pos_embed', 'pos_embedding')):
            hint = (
                '; build the network for the image size of the checkpoint (img_size) here, and '
                'MMPretrain will resize the result where it is loaded'
            )
        raise ValueError(
            f'{name} has shape {tuple(value.shape)}, but the network needs '
            f'{tuple(expected.shape)}{hint}'
        )
    if expected.is_floating_point():
        if value.dtype not in FLOATS:
            raise ValueError(f'{name} is of type {value.dtype}; expected one of {FLOATS}')
    elif value.is_floating_point() or value.is_complex():
        raise ValueError(f'{name} is of type {value.dtype}; expected {expected.dtype}')


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    """Shape without trailing ones: linear layers may stand for 1 x 1 convolutions."""
    shape = tuple(tensor.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _some(names: Iterable[str]) -> str:
    return some_of(list(names), limit=3)
