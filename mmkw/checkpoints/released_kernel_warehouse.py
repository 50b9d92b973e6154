"""The networks in checkpoints of the KernelWarehouse release, from their tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..methods.kernel_warehouse.layers import KWLayer
from .released_networks import (
    CLASSIFIER,
    CONVNEXT,
    DETECTOR,
    MOBILENET_V2,
    RESNET,
    Family,
    IdentifiedModel,
    build_released,
    find_family,
    new_names,
)
from .tensor_checks import same_but_ones

_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
# The networks to try, by what the names of configs call them: arguments that make a backbone
# KernelWarehouse.
_VARIANTS: dict[Family, dict[str, dict[str, Any]]] = {
    RESNET: {
        '1x': dict(budget=1),
        '1d2x': dict(budget=1 / 2),
        '1d4x': dict(budget=1 / 4),
        '2x': dict(budget=2),
        '4x': dict(budget=4),
    },
    MOBILENET_V2: {'1x': dict(budget=1), '4x': dict(budget=4), '1d2x': dict(budget=1 / 2)},
    CONVNEXT: {
        '1x-released': dict(budget=1, blocks_per_warehouse=None, attention=dict(reduction=1 / 16)),
        '1x': dict(budget=1, blocks_per_warehouse=3),
        '3d4x': dict(budget=3 / 4, blocks_per_warehouse=3),
    },
}
# Where the classifier is KernelWarehouse, too.
_HEADS: dict[tuple[Family, str], dict[str, Any]] = {
    (MOBILENET_V2, '1d2x'): dict(
        type='KWLinearClsHead',
        budget=1 / 2,
        cell_ratio=(1, 1 / 40),
        attention=dict(reduction=1 / 32),
    )
}
# Networks with configs.
_CLASSIFIERS = {
    'resnet18': ('1d4x', '1d2x', '1x', '2x', '4x'),
    'resnet50': ('1d2x', '1x', '4x'),
    'mobilenet-v2-w050': ('1d2x', '1x', '4x'),
    'mobilenet-v2-w100': ('1d2x', '1x', '4x'),
    'convnext-tiny': ('1x-released', '1x', '3d4x'),
}
_DETECTORS = {
    'resnet50': ('1x', '4x'),
    'mobilenet-v2-w100': ('1x', '4x'),
    'convnext-tiny': ('1x-released', '1x', '3d4x'),
}


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
    family = find_family(names.values(), _VARIANTS)
    matches = {name: _WAREHOUSE.fullmatch(inner) for name, inner in names.items()}
    targets = new_names({name: names[name] for name in names if not matches[name]}, family)
    cells = sorted((int(match[1]), name) for name, match in matches.items() if match)
    numbers = [number for number, _ in cells]
    if numbers != list(range(len(cells))):
        raise ValueError(f'expected warehouses numbered from 0, but found {numbers}')
    tensors = {target: released[name] for name, target in targets.items()}
    meta, model = _find_variant(family, kind, [released[name] for _, name in cells], tensors)
    targets.update((name, target) for (_, name), target in zip(cells, _warehouses(model)))
    return IdentifiedModel(meta, model, targets)


def _find_variant(
    family: Family, kind: str, cells: list[Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], nn.Module]:
    """The family's model that has these warehouses, and what it is."""
    size = family.find_size(tensors)
    fewest, backbones = None, []
    for variant, options in _VARIANTS[family].items():
        backbone = {'type': f'KW{family.backbone}', family.size_name: size, **options}
        backbones.append(backbone)
        meta, model = build_released(
            kind,
            backbone,
            in_detector={**backbone, **family.in_detector},
            channels=family.channels(size),
            tensors=tensors,
            config=_find_config(kind, family, size, variant),
            head=_HEADS.get((family, variant)),
        )
        differences = _differences(cells, _warehouses(model).values())
        if not differences:
            return meta, model
        if fewest is None or len(differences) < len(fewest):
            fewest, nearest = differences, backbone
    raise ValueError(
        f'no network of {backbones} has these warehouses; nearest is {nearest}, but '
        f'{"; ".join(fewest[:3])}'
    )


def _find_config(kind: str, family: Family, size: Any, variant: str) -> str | None:
    """A config that has this model."""
    name = family.config_name(size)
    if kind == DETECTOR and variant in _DETECTORS.get(name, ()):
        name = name.removesuffix('-w100')
        return f'configs/coco/mask-rcnn_kw-{name}-{variant}_fpn_ms-1x_coco.py'
    if kind == CLASSIFIER and variant in _CLASSIFIERS.get(name, ()):
        schedule = '8xb32-150e' if family is MOBILENET_V2 else '8xb512-300e'
        return f'configs/imagenet/kw-{name}-{variant}_{schedule}_in1k.py'
    return None


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
