"""The networks in checkpoints of the KernelWarehouse release, from their tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from torch import Tensor, nn

from ..methods.kernel_warehouse.layers import KWLayer
from ..openmmlab.backbones import KWConvNeXt, KWMobileNetV2, KWResNet
from .network_sizes import (
    MOBILENET_V2_OUTPUTS,
    convnext_arch,
    convnext_channels,
    mobilenet_v2_channels,
    mobilenet_v2_width,
    resnet_channels,
    resnet_depth,
    tensor_length,
)
from .plain_tensor_names import FORMATS, rename
from .released_models import CLASSIFIER, DETECTOR, IdentifiedModel, build_classifier, build_detector
from .tensor_checks import same_but_ones

_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
_CONVNEXT_RELEASED = dict(budget=1, blocks_per_warehouse=None, attention=dict(reduction=1 / 16))
_CONVNEXT_1X = dict(budget=1, blocks_per_warehouse=3)
_CONVNEXT_3D4X = dict(budget=3 / 4, blocks_per_warehouse=3)


def is_kernel_warehouse(names: Iterable[str]) -> bool:
    """Whether tensors with these names are those of a KernelWarehouse network."""
    return any(_WAREHOUSE.search(name) for name in names)


def identify_kernel_warehouse(
    kind: str, names: Mapping[str, str], released: Mapping[str, Tensor]
) -> IdentifiedModel:
    """Which ResNet, MobileNetV2 or ConvNeXt it is, and of which budget.

    Args:
        kind: ``'ImageClassifier'`` or ``'MaskRCNN'``.
        names: the name of each tensor of backbone and classifier in the file -> the same without
            ``module.`` and ``backbone.``.
        released: the tensors by their names in the file.

    Raises:
        ValueError: if a name is unknown or there twice, or no network of the release has these
            blocks, this width or these warehouses.
    """
    family = _find_family(names.values())
    cells, targets = _convert_names(names, family)
    tensors = {target: released[name] for name, target in targets.items()}
    meta, model = _build_model(family, kind, [released[name] for name in cells], tensors)
    targets.update(zip(cells, _warehouses(model)))
    return IdentifiedModel(meta, model, targets)


@dataclass(frozen=True)
class _Family:
    """One kind of released networks.

    Attributes:
        backbone: its class.
        mark: start of names that every network of the family has and no other.
        size_name: the argument of the backbone that is its size.
        names: rules that turn the release's names into those of a classifier of MMPretrain.
        find_size: from the renamed tensors to that size.
        variants: for each network to try, the arguments that make the backbone KernelWarehouse,
            and those of a KernelWarehouse classifier; ``None`` if the classifier is plain.
        in_detector: arguments of the backbone that a detector adds.
        channels: of the four outputs in a detector, the last being the classifier's input, from
            the size.
    """

    backbone: type[nn.Module]
    mark: str
    size_name: str
    names: Sequence[tuple]
    find_size: Callable[[Mapping[str, Tensor]], Any]
    variants: Sequence[tuple[dict, dict | None]]
    in_detector: dict[str, Any]
    channels: Callable[[Any], Sequence[int]]


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
    family: _Family, kind: str, cells: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], nn.Module]:
    """The family's model that has these warehouses, and what it is."""
    size = family.find_size(tensors)
    plain = {family.size_name: size}
    channels = family.channels(size)
    fewest = None
    for backbone_options, head_options in family.variants:
        backbone = dict(type=family.backbone.__name__, **plain, **backbone_options)
        meta: dict[str, Any] = dict(
            model=kind, backbone=backbone, config=_find_config(kind, backbone)
        )
        if kind == DETECTOR:
            model = build_detector(dict(backbone, **family.in_detector), channels)
        else:
            meta['head'] = dict(
                type='mmpretrain.LinearClsHead' if head_options is None else 'KWLinearClsHead',
                num_classes=tensor_length(tensors, 'head.fc.bias'),
                in_channels=channels[-1],
                **(head_options or {}),
            )
            model = build_classifier(backbone, meta['head'])
        differences = _differences(cells, _warehouses(model).values())
        if fewest is None or len(differences) < len(fewest):
            fewest, nearest = differences, (meta, model)
        if not differences:
            return nearest
    variants = [dict(**plain, **options) for options, _ in family.variants]
    raise ValueError(
        f'no {family.backbone.__name__} of {variants} has these warehouses; nearest is '
        f'{nearest[0]["backbone"]}, but {"; ".join(fewest[:3])}'
    )


def _find_config(kind: str, backbone: dict[str, Any]) -> str | None:
    """A config that has this model."""
    folder = 'configs/coco' if kind == DETECTOR else 'configs/imagenet'
    found = (f'{folder}/{name}.py' for name, known in CONFIGS[kind] if known == backbone)
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
        if left is None or right is None or not same_but_ones(left, right)
    ]


def _shape(cells: Tensor | None) -> tuple[int, ...] | str:
    return 'missing' if cells is None else tuple(cells.shape)


_FAMILIES = (
    _Family(
        KWResNet,
        mark='layer1.0.conv1.',
        names=[(r'fc\.', 'head.fc.'), (r'', 'backbone.')],
        size_name='depth',
        find_size=resnet_depth,
        variants=[(dict(budget=budget), None) for budget in (1, 1 / 2, 1 / 4, 2, 4)],
        in_detector=dict(out_indices=(0, 1, 2, 3)),
        channels=resnet_channels,
    ),
    _Family(
        KWMobileNetV2,
        mark='features.0.0.',
        names=[(r'classifier(\.1\.conv)?\.', 'head.fc.'), *FORMATS['MobileNetV2 of torchvision']],
        size_name='widen_factor',
        find_size=lambda tensors: mobilenet_v2_width(tensors, (1.0, 0.5)),
        variants=[
            (dict(budget=1), None),
            (dict(budget=4), None),
            (
                dict(budget=1 / 2),
                dict(budget=1 / 2, cell_ratio=(1, 1 / 40), attention=dict(reduction=1 / 32)),
            ),
        ],
        in_detector=dict(out_indices=MOBILENET_V2_OUTPUTS),
        channels=mobilenet_v2_channels,
    ),
    _Family(
        KWConvNeXt,
        mark='stages.0.0.dwconv.',
        # In detectors, every stage's output has a norm.
        names=[(r'(norm[0-3]\.)', r'backbone.\1'), *FORMATS['ConvNeXt of its authors']],
        size_name='arch',
        find_size=convnext_arch,
        variants=[(_CONVNEXT_RELEASED, None), (_CONVNEXT_1X, None), (_CONVNEXT_3D4X, None)],
        in_detector=dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
        channels=convnext_channels,
    ),
)


def _resnet(depth: int, budget: float) -> dict[str, Any]:
    return dict(type='KWResNet', depth=depth, budget=budget)


def _mobilenet_v2(widen_factor: float, budget: float) -> dict[str, Any]:
    return dict(type='KWMobileNetV2', widen_factor=widen_factor, budget=budget)


def _convnext(options: dict[str, Any]) -> dict[str, Any]:
    return dict(type='KWConvNeXt', arch='tiny', **options)


# The config of each model, and its backbone.
CONFIGS = {
    CLASSIFIER: [
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
    DETECTOR: [
        ('mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco', _resnet(50, 1)),
        ('mask-rcnn_kw-resnet50-4x_fpn_ms-1x_coco', _resnet(50, 4)),
        ('mask-rcnn_kw-mobilenet-v2-1x_fpn_ms-1x_coco', _mobilenet_v2(1.0, 1)),
        ('mask-rcnn_kw-mobilenet-v2-4x_fpn_ms-1x_coco', _mobilenet_v2(1.0, 4)),
        ('mask-rcnn_kw-convnext-tiny-1x_fpn_ms-1x_coco', _convnext(_CONVNEXT_1X)),
        ('mask-rcnn_kw-convnext-tiny-3d4x_fpn_ms-1x_coco', _convnext(_CONVNEXT_3D4X)),
        ('mask-rcnn_kw-convnext-tiny-1x-released_fpn_ms-1x_coco', _convnext(_CONVNEXT_RELEASED)),
    ],
}
