"""Converting checkpoints of the authors' release."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Union

import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from ..backbones import KWConvNeXt, KWMobileNetV2, KWResNet
from ..kernel_warehouse.layers import KWLayer
from .loading import load_checkpoint
from .plain_tensor_names import FORMATS, rename
from .released_odconv import ODConvNetwork, identify_odconv, is_odconv
from .saving import save_checkpoint
from .tensor_checks import FLOATS, check_values

# Where released files hold state dicts; the first one that is there is the one to evaluate.
_WEIGHTS = ('model_ema', 'model', 'state_dict')
_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
_BACKBONE = 'backbone.'
# What the backbone of a detector carries along of the classifier that it was.
_UNUSED = re.compile(r'(fc|classifier|norm|head)\.')
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CLASSIFIER, _DETECTOR = 'ImageClassifier', 'MaskRCNN'
# MobileNetV2's widths, by the channels of the stem.
_WIDTHS = {32: 1.0, 16: 0.5}
_MOBILENET_V2_CHANNELS = {1.0: (24, 32, 96, 1280), 0.5: (16, 16, 48, 1280)}
_CONVNEXT_RELEASED = dict(budget=1, blocks_per_warehouse=None, attention=dict(reduction=1 / 16))
_CONVNEXT_1X = dict(budget=1, blocks_per_warehouse=3)
_CONVNEXT_3D4X = dict(budget=3 / 4, blocks_per_warehouse=3)
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
        if meta['model'] == _DETECTOR:
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
        in_detector: arguments of the backbone that a detector adds.
        channels: of the four outputs in a detector, the last being the classifier's input, from
            the arguments of the plain backbone.
    """

    backbone: type[nn.Module]
    mark: str
    names: Sequence[tuple]
    find_size: Callable[[_StateDict], dict[str, Any]]
    variants: Sequence[tuple[dict, dict | None]]
    in_detector: dict[str, Any]
    channels: Callable[[dict], Sequence[int]]


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
        any(_WAREHOUSE.search(str(name)) for name in state_dict) or is_odconv(map(str, state_dict))
    ):
        found = list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(state_dict)
        raise ValueError(
            f'not a released KernelWarehouse or ODConv checkpoint: expected a dict whose `model` '
            f'or `state_dict` holds tensors named warehouse_manager.weights.* (KernelWarehouse) or '
            f'*.attention.channel_fc.* (ODConv), but found {found}'
        )
    for name, value in state_dict.items():
        _check_value(name, value)
    return weights, state_dict


def _check_value(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(
            f'expected tensors by name, but {name!r} is of type {type(value).__name__}'
        )
    check_values(name, value)


def _coco_classes(checkpoint: Mapping) -> dict[str, Any]:
    """MMDetection's ``dataset_meta``, which all the released detectors share."""
    # Classifiers are converted without MMDetection, too.
    from mmdet.datasets import CocoDataset

    meta = checkpoint.get('meta')
    classes = meta.get('CLASSES') if isinstance(meta, Mapping) else None
    expected = CocoDataset.METAINFO['classes']
    if classes is not None and tuple(classes) != expected:
        raise ValueError(
            f"its meta['CLASSES'] are not COCO's 80: it has {len(classes)}, beginning with "
            f'{tuple(classes[:3])} instead of {expected[:3]}'
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
    kind = _DETECTOR if is_detector else _CLASSIFIER
    if is_odconv(names.values()):
        network = identify_odconv(names, released)
        targets.update(network.targets)
        tensors = {target: released[name] for name, target in targets.items()}
        meta, model = _build_odconv(kind, network, tensors)
    else:
        family = _find_family(names.values())
        cells, renamed = _convert_names(names, family)
        targets.update(renamed)
        tensors = {target: released[name] for name, target in targets.items()}
        meta, model = _build_model(family, kind, [released[name] for name in cells], tensors)
        targets.update(zip(cells, _warehouses(model)))
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
        model.load_state_dict(state_dict)
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
    """A released tensor in the shape of the model's."""
    types = FLOATS if expected.is_floating_point() else _INTEGERS
    if value.dtype not in types:
        raise ValueError(
            f'{name} is of type {value.dtype}; expected one of {", ".join(map(str, types))}'
        )
    return value.reshape(expected.shape) if _same_but_ones(value, expected) else value


def _find_family(names: Iterable[str]) -> _Family:
    names = list(names)
    families = [
        family for family in _FAMILIES if any(name.startswith(family.mark) for name in names)
    ]
    if len(families) != 1:
        found = ' and '.join(family.backbone.__name__ for family in families) or 'none'
        raise ValueError(
            f'expected names of one of {[family.backbone.__name__ for family in _FAMILIES]}, but '
            f'found those of {found}: {names[-3:]}'
        )
    return families[0]


def _convert_names(names: Mapping[str, str], family: _Family) -> tuple[list[str], dict[str, str]]:
    """Names of the cells in their order, and the new names of all other tensors."""
    cells: dict[int, str] = {}
    targets: dict[str, str] = {}
    for name, inner in names.items():
        match = _WAREHOUSE.fullmatch(inner)
        if match:
            is_known, is_new = True, int(match[1]) not in cells
            cells[int(match[1])] = name
        else:
            target = rename(inner.replace('.attention.norm1.', '.attention.norm.'), family.names)
            is_known, is_new = target is not None, target not in targets.values()
            targets[name] = target
        if not is_known or not is_new:
            what = 'there twice, under two names' if is_known else 'unknown'
            raise ValueError(f'{name} of a {family.backbone.__name__} is {what}')
    if sorted(cells) != list(range(len(cells))):
        raise ValueError(f'expected warehouses numbered from 0, but found {sorted(cells)}')
    return [cells[number] for number in sorted(cells)], targets


def _build_model(
    family: _Family, kind: str, cells: Sequence[Tensor], state_dict: _StateDict
) -> tuple[dict[str, Any], nn.Module]:
    """The family's model that has these warehouses, and what it is."""
    size = family.find_size(state_dict)
    fewest = None
    for backbone_options, head_options in family.variants:
        meta = dict(
            model=kind, backbone=dict(type=family.backbone.__name__, **size, **backbone_options)
        )
        if kind == _DETECTOR:
            model = _build_detector(
                dict(meta['backbone'], **family.in_detector), family.channels(size)
            )
        else:
            meta['head'] = dict(
                type='mmpretrain.LinearClsHead' if head_options is None else 'KWLinearClsHead',
                num_classes=_length(state_dict, 'head.fc.bias'),
                in_channels=family.channels(size)[-1],
                **(head_options or {}),
            )
            model = _build_classifier(meta['backbone'], meta['head'])
        differences = _differences(cells, _warehouses(model).values())
        if fewest is None or len(differences) < len(fewest):
            fewest, nearest = differences, (meta, model)
        if not differences:
            meta['config'] = _find_config(kind, meta['backbone'])
            return nearest
    variants = [dict(**size, **options) for options, _ in family.variants]
    raise ValueError(
        f'no {family.backbone.__name__} of {variants} has these warehouses; nearest is '
        f'{nearest[0]["backbone"]}, but {"; ".join(fewest[:3])}'
    )


def _build_odconv(
    kind: str, network: ODConvNetwork, state_dict: _StateDict
) -> tuple[dict[str, Any], nn.Module]:
    """The ODConv model of a kind with this backbone, and what it is."""
    config = network.configs.get(kind)
    meta = dict(model=kind, backbone=network.backbone, config=config)
    if kind == _DETECTOR:
        laterals = [f'neck.lateral_convs.{level}.conv' for level in range(4)]
        channels = [
            _length(state_dict, f'{name}.weight') // _length(state_dict, f'{name}.bias')
            for name in laterals
        ]
        return meta, _build_detector(network.backbone_in_detector, channels)
    num_classes = _length(state_dict, 'head.fc.bias')
    meta['head'] = dict(
        type='mmpretrain.LinearClsHead',
        num_classes=num_classes,
        in_channels=_length(state_dict, 'head.fc.weight') // num_classes,
    )
    return meta, _build_classifier(meta['backbone'], meta['head'])


def _build_classifier(backbone: dict[str, Any], head: dict[str, Any]) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type=_CLASSIFIER, backbone=backbone, head=head))


def _build_detector(backbone: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    """The Mask R-CNN of configs/coco, whose base is MMDetection's."""
    config = get_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py').model
    config.backbone = dict(backbone)
    config.neck.in_channels = list(channels)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def _find_config(kind: str, backbone: dict[str, Any]) -> str | None:
    """A config that has this model."""
    folder = 'configs/coco' if kind == _DETECTOR else 'configs/imagenet'
    found = (f'{folder}/{name}.py' for name, known in _CONFIGS[kind] if known == backbone)
    return next(found, None)


def _warehouses(network: nn.Module) -> dict[str, Tensor]:
    """Cells by name, in the order in which layers of the network first use them."""
    names = {module: f'{name}.cells' for name, module in network.named_modules()}
    users = (module for module in network.modules() if isinstance(module, KWLayer))
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


def _resnet_channels(size: dict[str, Any]) -> list[int]:
    block, _ = KWResNet.arch_settings[size['depth']]
    expansion = 4 if block is Bottleneck else 1
    return [channels * expansion for channels in (64, 128, 256, 512)]


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
        in_detector=dict(out_indices=(0, 1, 2, 3)),
        channels=_resnet_channels,
    ),
    _Family(
        KWMobileNetV2,
        mark='features.0.0.',
        names=[(r'classifier(\.1\.conv)?\.', 'head.fc.'), *FORMATS['MobileNetV2 of torchvision']],
        find_size=_mobilenet_v2_size,
        variants=[
            (dict(budget=1), None),
            (dict(budget=4), None),
            (
                dict(budget=1 / 2),
                dict(budget=1 / 2, cell_ratio=(1, 1 / 40), attention=dict(reduction=1 / 32)),
            ),
        ],
        in_detector=dict(out_indices=(1, 2, 4, 7)),
        channels=lambda size: _MOBILENET_V2_CHANNELS[size['widen_factor']],
    ),
    _Family(
        KWConvNeXt,
        mark='stages.0.0.dwconv.',
        # In detectors, every stage's output has a norm.
        names=[(r'(norm[0-3]\.)', r'backbone.\1'), *FORMATS['ConvNeXt of its authors']],
        find_size=_convnext_size,
        variants=[(_CONVNEXT_RELEASED, None), (_CONVNEXT_1X, None), (_CONVNEXT_3D4X, None)],
        in_detector=dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
        channels=lambda size: KWConvNeXt.arch_settings[size['arch']]['channels'],
    ),
)


def _resnet(depth: int, budget: float) -> dict[str, Any]:
    return dict(type='KWResNet', depth=depth, budget=budget)


def _mobilenet_v2(widen_factor: float, budget: float) -> dict[str, Any]:
    return dict(type='KWMobileNetV2', widen_factor=widen_factor, budget=budget)


def _convnext(options: dict[str, Any]) -> dict[str, Any]:
    return dict(type='KWConvNeXt', arch='tiny', **options)


# The config of each model, and its backbone.
_CONFIGS = {
    _CLASSIFIER: [
        ('kw-resnet18-1d4x_8xb512-300e_in1k', _resnet(18, 1 / 4)),
        ('kw-resnet18-1d2x_8xb512-300e_in1k', _resnet(18, 1 / 2)),
        ('kw-resnet18-1x_8xb512-300e_in1k', _resnet(18, 1)),
        ('kw-resnet18-2x_8xb512-300e_in1k', _resnet(18, 2)),
        ('kw-resnet18-4x_8xb512-300e_in1k', _resnet(18, 4)),
        ('kw-resnet50-1d2x_8xb512-300e_in1k', _resnet(50, 1 / 2)),
        ('kw-resnet50-1x_8xb512-300e_in1k', _resnet(50, 1)),
        ('kw-resnet50-4x_8xb512-300e_in1k', _resnet(50, 4)),
        ('kw-mobilenet-v2-w050-1d2x_8xb32-150e_in1k', _mobilenet_v2(0.5, 1 / 2)),
        ('kw-mobilenet-v2-w050-1x_8xb32-150e_in1k', _mobilenet_v2(0.5, 1)),
        ('kw-mobilenet-v2-w050-4x_8xb32-150e_in1k', _mobilenet_v2(0.5, 4)),
        ('kw-mobilenet-v2-w100-1d2x_8xb32-150e_in1k', _mobilenet_v2(1.0, 1 / 2)),
        ('kw-mobilenet-v2-w100-1x_8xb32-150e_in1k', _mobilenet_v2(1.0, 1)),
        ('kw-mobilenet-v2-w100-4x_8xb32-150e_in1k', _mobilenet_v2(1.0, 4)),
        ('kw-convnext-tiny-1x-released_8xb512-300e_in1k', _convnext(_CONVNEXT_RELEASED)),
        ('kw-convnext-tiny-1x_8xb512-300e_in1k', _convnext(_CONVNEXT_1X)),
        ('kw-convnext-tiny-3d4x_8xb512-300e_in1k', _convnext(_CONVNEXT_3D4X)),
    ],
    _DETECTOR: [
        ('mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco', _resnet(50, 1)),
        ('mask-rcnn_kw-resnet50-4x_fpn_ms-1x_coco', _resnet(50, 4)),
        ('mask-rcnn_kw-mobilenet-v2-1x_fpn_ms-1x_coco', _mobilenet_v2(1.0, 1)),
        ('mask-rcnn_kw-mobilenet-v2-4x_fpn_ms-1x_coco', _mobilenet_v2(1.0, 4)),
        ('mask-rcnn_kw-convnext-tiny-1x_fpn_ms-1x_coco', _convnext(_CONVNEXT_1X)),
        ('mask-rcnn_kw-convnext-tiny-3d4x_fpn_ms-1x_coco', _convnext(_CONVNEXT_3D4X)),
        ('mask-rcnn_kw-convnext-tiny-1x-released_fpn_ms-1x_coco', _convnext(_CONVNEXT_RELEASED)),
    ],
}
