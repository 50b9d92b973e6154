"""Converting checkpoints of the authors' release."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Union

from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from ..backbones import KWConvNeXt, KWMobileNetV2, KWResNet
from ..kernel_warehouse.layers import _KWLayer
from .loading import load_checkpoint
from .names import FORMATS, rename
from .saving import save_checkpoint

# Where released files hold state dicts; the first one that is there is the one to evaluate.
_WEIGHTS = ('model_ema', 'model')
_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
# MobileNetV2's widths, by the channels of the stem.
_WIDTHS = {32: 1.0, 16: 0.5}
_Path = Union[str, os.PathLike]
_StateDict = Mapping[str, Tensor]


def convert_released(src: _Path, dst: _Path | None = None, weights: str = 'auto') -> dict:
    """Turn a released KernelWarehouse classifier into an mmkw checkpoint.

    Which ResNet, MobileNetV2 or ConvNeXt it is, and of which budget, is found from names and
    shapes, and the result is verified by loading it strictly into that classifier. It suits
    ``load_from`` and strict loading in the classifier of the matching config, and
    ``init_cfg=dict(type='Pretrained', checkpoint=dst, prefix='backbone.')`` in a detector's
    backbone.

    Args:
        src: a released file: a pickled dict with the state dict under ``model`` and, if weights
            were averaged in training, those under ``model_ema``; or such a state dict itself.
            Read without running code from it.
        dst: where to write the result, in one step. Defaults to ``None``, nowhere.
        weights: ``'model'``, ``'model_ema'`` or, by default, ``'auto'``: the averaged weights, by
            which the release is evaluated, where there are any.

    Returns:
        The mmkw checkpoint: ``state_dict`` and ``meta``, which has the configs of the ``backbone``
        and the ``head``, the name of the ``source`` file, and the ``weights`` that were taken
        (``None`` where the file is itself a state dict).

    Raises:
        ValueError: if ``src`` holds no released classifier, or not the ``weights`` asked for; it
            says which names or shapes are off.
        UnsafeCheckpointError: if its pickle asks for classes that checkpoints do not need.
        FileNotFoundError: if ``src`` or the folder of ``dst`` is missing.
    """
    checkpoint = load_checkpoint(src)
    try:
        weights, released = _select_weights(checkpoint, weights)
        backbone, head, state_dict = _convert(released)
    except ValueError as error:
        raise ValueError(f'{src} cannot be converted: {error}') from error
    meta = dict(backbone=backbone, head=head, source=os.path.basename(src), weights=weights)
    checkpoint = dict(state_dict=state_dict, meta=meta)
    if dst is not None:
        save_checkpoint(checkpoint, dst)
    return checkpoint


@dataclass(frozen=True)
class _Family:
    """One kind of released networks.

    Attributes:
        backbone: its class.
        mark: start of names that every network of the family has and no other.
        names: rules that turn the release's names into those of a classifier of MMPretrain.
        find_size: from the renamed state dict to the arguments of the plain backbone.
        variants: for each network to try, the arguments that make the backbone KernelWarehouse,
            and those of a KernelWarehouse classifier; ``None`` if the classifier is plain.
        out_channels: of a backbone.
    """

    backbone: type[nn.Module]
    mark: str
    names: Sequence[tuple]
    find_size: Callable[[_StateDict], dict[str, Any]]
    variants: Sequence[tuple[dict, dict | None]]
    out_channels: Callable[[nn.Module], int]


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
    if not isinstance(state_dict, Mapping) or not any(
        _WAREHOUSE.search(str(name)) for name in state_dict
    ):
        found = list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(state_dict)
        raise ValueError(
            f'not a released KernelWarehouse checkpoint: expected a dict whose `model` holds '
            f'tensors named warehouse_manager.weights.*, but found {found}'
        )
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'expected tensors by name, but {name!r} is of type {type(value).__name__}'
            )
    return weights, state_dict


def _convert(released: _StateDict) -> tuple[dict, dict, dict[str, Tensor]]:
    """The configs of backbone and head, and the state dict of the two."""
    # Saved from DistributedDataParallel.
    released = {name.removeprefix('module.'): value for name, value in released.items()}
    family = _find_family(released)
    cells, state_dict = _convert_names(released, family)
    backbone, head, classifier = _build_classifier(family, cells, state_dict)
    state_dict.update(zip(_warehouses(classifier), cells))
    expected = classifier.state_dict()
    for name, value in state_dict.items():
        if name in expected and _same_but_ones(value, expected[name]):
            state_dict[name] = value.reshape(expected[name].shape)
    try:
        # The release stores no temperature; its models are trained, so it is 0, as in new ones.
        classifier.load_state_dict(state_dict)
    except (RuntimeError, ValueError) as error:
        mismatch = ' '.join(str(error).split())
        raise ValueError(f'it looks like {backbone}, but {mismatch}') from error
    return backbone, head, dict(classifier.state_dict())


def _find_family(released: _StateDict) -> _Family:
    families = [
        family for family in _FAMILIES if any(name.startswith(family.mark) for name in released)
    ]
    if len(families) != 1:
        found = ' and '.join(family.backbone.__name__ for family in families) or 'none'
        raise ValueError(
            f'expected names of one of {[family.backbone.__name__ for family in _FAMILIES]}, but '
            f'found those of {found}: {list(released)[-3:]}'
        )
    return families[0]


def _convert_names(released: _StateDict, family: _Family) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The warehouses' cells in their order, and the other tensors under their new names."""
    cells: dict[int, Tensor] = {}
    state_dict: dict[str, Tensor] = {}
    for name, value in released.items():
        match = _WAREHOUSE.fullmatch(name)
        if match:
            cells[int(match[1])] = value
            continue
        new_name = rename(name.replace('.attention.norm1.', '.attention.norm.'), family.names)
        if new_name is None or new_name in state_dict:
            what = 'unknown' if new_name is None else 'there twice, under two names'
            raise ValueError(f'{name} of a {family.backbone.__name__} is {what}')
        state_dict[new_name] = value
    if sorted(cells) != list(range(len(cells))):
        raise ValueError(f'expected warehouses numbered from 0, but found {sorted(cells)}')
    return [cells[number] for number in sorted(cells)], state_dict


def _build_classifier(
    family: _Family, cells: Sequence[Tensor], state_dict: _StateDict
) -> tuple[dict, dict, nn.ModuleDict]:
    """The family's network that has these warehouses: configs of backbone and head, and both."""
    size = family.find_size(state_dict)
    num_classes = _length(state_dict, 'head.fc.bias')
    fewest = None
    for backbone_options, head_options in family.variants:
        backbone = dict(type=family.backbone.__name__, **size, **backbone_options)
        classifier = nn.ModuleDict(dict(backbone=MODELS.build(backbone)))
        head = dict(
            type='mmpretrain.LinearClsHead' if head_options is None else 'KWLinearClsHead',
            num_classes=num_classes,
            in_channels=family.out_channels(classifier['backbone']),
            **(head_options or {}),
        )
        with DefaultScope.overwrite_default_scope('mmpretrain'):  # where its loss is found
            classifier['head'] = MODELS.build(head)
        differences = _differences(cells, _warehouses(classifier).values())
        if fewest is None or len(differences) < len(fewest):
            fewest, nearest = differences, (backbone, head, classifier)
        if not differences:
            return nearest
    variants = [dict(**size, **options) for options, _ in family.variants]
    raise ValueError(
        f'no {family.backbone.__name__} of {variants} has these warehouses; nearest is '
        f'{nearest[0]}, but {"; ".join(fewest[:3])}'
    )


def _warehouses(network: nn.Module) -> dict[str, Tensor]:
    """Cells by name, in the order in which layers of the network first use them."""
    names = {module: f'{name}.cells' for name, module in network.named_modules()}
    users = (module for module in network.modules() if isinstance(module, _KWLayer))
    return {names[user.warehouse]: user.warehouse.cells for user in users}


def _differences(found: Iterable[Tensor], expected: Iterable[Tensor]) -> list[str]:
    """Which warehouses of a released file are not those of a network."""
    return [
        f'warehouse_manager.weights.{number} is {_shape(left)} instead of {_shape(right)}'
        for number, (left, right) in enumerate(itertools.zip_longest(found, expected))
        if left is None or right is None or not _same_but_ones(left, right)
    ]


def _shape(cells: Tensor | None) -> tuple[int, ...] | str:
    return 'missing' if cells is None else tuple(cells.shape)


def _same_but_ones(left: Tensor, right: Tensor) -> bool:
    """Whether two shapes are the same but for dimensions of size 1.

    The release has 1 x 1 convolutions for MMPretrain's linear layers, and layer scales of shape
    (1, C, 1, 1).
    """
    return left.squeeze().shape == right.squeeze().shape


def _resnet_size(state_dict: _StateDict) -> dict[str, Any]:
    found = tuple(_count_blocks(state_dict, r'backbone\.layer(\d+)\.(\d+)\.'))
    has_bottleneck = any('.conv3.' in name for name in state_dict)
    for depth, (block, stage_blocks) in KWResNet.arch_settings.items():
        if found == stage_blocks and has_bottleneck == (block is Bottleneck):
            return dict(depth=depth)
    raise ValueError(
        f'no ResNet of a depth in {sorted(KWResNet.arch_settings)} has {found} '
        f'{"bottleneck" if has_bottleneck else "basic"} blocks'
    )


def _mobilenet_v2_size(state_dict: _StateDict) -> dict[str, Any]:
    channels = _length(state_dict, 'backbone.conv1.bn.weight')
    if channels not in _WIDTHS:
        raise ValueError(
            f'expected the stem of a MobileNetV2 to have {" or ".join(map(str, _WIDTHS))} '
            f'channels, for widths {" or ".join(map(str, _WIDTHS.values()))}, but it has {channels}'
        )
    return dict(widen_factor=_WIDTHS[channels])


def _convnext_size(state_dict: _StateDict) -> dict[str, Any]:
    depths = _count_blocks(state_dict, r'backbone\.stages\.(\d+)\.(\d+)\.')
    channels = [
        _length(state_dict, f'backbone.stages.{stage}.0.norm.weight')
        for stage in range(len(depths))
    ]
    for arch, settings in KWConvNeXt.arch_settings.items():
        if (depths, channels) == (settings['depths'], settings['channels']):
            return dict(arch=arch)
    raise ValueError(
        f'no ConvNeXt of {list(KWConvNeXt.arch_settings)} has {depths} blocks of {channels} '
        f'channels'
    )


def _count_blocks(state_dict: _StateDict, pattern: str) -> list[int]:
    """Blocks in each stage, from a pattern of names that finds the numbers of both."""
    blocks = {match.groups() for match in map(re.compile(pattern).match, state_dict) if match}
    counts = Counter(stage for stage, _ in blocks)
    return [counts[stage] for stage in sorted(counts)]


def _length(state_dict: _StateDict, name: str) -> int:
    if name not in state_dict:
        raise ValueError(f'it lacks {name}')
    return state_dict[name].numel()


_FAMILIES = (
    _Family(
        KWResNet,
        mark='layer1.0.conv1.',
        names=[(r'fc\.', 'head.fc.'), (r'', 'backbone.')],
        find_size=_resnet_size,
        variants=[(dict(budget=budget), None) for budget in (1, 1 / 2, 1 / 4, 2, 4)],
        out_channels=lambda backbone: backbone.feat_dim,
    ),
    _Family(
        KWMobileNetV2,
        mark='features.0.0.',
        names=[(r'classifier(\.1\.conv)?\.', 'head.fc.'), *FORMATS['MobileNetV2 of torchvision']],
        find_size=_mobilenet_v2_size,
        variants=[
            (dict(budget=1), None),
            (dict(budget=4), None),
            (dict(budget=1 / 2), dict(budget=1 / 2, cell_ratio=(1, 1 / 40), reduction=1 / 32)),
        ],
        out_channels=lambda backbone: backbone.out_channel,
    ),
    _Family(
        KWConvNeXt,
        mark='stages.0.0.dwconv.',
        names=FORMATS['ConvNeXt of its authors'],
        find_size=_convnext_size,
        variants=[
            (dict(budget=1, blocks_per_warehouse=None, reduction=1 / 16), None),
            (dict(budget=1, blocks_per_warehouse=3, reduction=1 / 32), None),
            (dict(budget=3 / 4, blocks_per_warehouse=3, reduction=1 / 32), None),
        ],
        out_channels=lambda backbone: backbone.channels[-1],
    ),
)
