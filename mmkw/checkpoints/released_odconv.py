"""The networks in checkpoints of the ODConv release, from names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .network_sizes import (
    MOBILENET_V2_OUTPUTS,
    mobilenet_v2_channels,
    mobilenet_v2_width,
    resnet_channels,
    resnet_depth,
    tensor_length,
)
from .plain_tensor_names import FORMATS, rename
from .released_models import CLASSIFIER, DETECTOR, IdentifiedModel, build_classifier, build_detector

# Every ODConv layer has a channel attention, and no other layer has one.
_MARK = '.attention.channel_fc.'
_RESNET_NAMES = [(r'fc\.', 'head.fc.'), (r'', 'backbone.')]
_MOBILENET_V2_NAMES = FORMATS['MobileNetV2 of torchvision']
# Which convolutions are ODConv layers; see the docs of DynamicBackbone.
_RESNET_LAYERS = ['layer*.conv?']
_MOBILENET_V2_LAYERS = ['layer*', 'conv2.conv']
# The networks with configs, by the name that these have.
_CLASSIFIERS = {
    **{f'resnet{depth}-{kernels}x': '8xb32-100e' for depth in (18, 34, 50) for kernels in (1, 4)},
    **{f'resnet101-{kernels}x': '8xb32-100e' for kernels in (1, 2)},
    **{
        f'mobilenet-v2-{width}-{kernels}x': '8xb32-150e'
        for width in ('w050', 'w075', 'w100')
        for kernels in (1, 4)
    },
}
_DETECTORS = {'resnet50-4x': 'resnet50-4x', 'mobilenet-v2-w100-4x': 'mobilenet-v2-4x'}


def is_odconv(names: Iterable[str]) -> bool:
    """Whether tensors with these names are those of an ODConv network."""
    return any(_MARK in name for name in names)


def identify_odconv(
    kind: str, names: Mapping[str, str], released: Mapping[str, Tensor]
) -> IdentifiedModel:
    """Which ResNet or MobileNetV2 it is, and of how many kernels.

    Args:
        kind: ``'ImageClassifier'`` or ``'MaskRCNN'``.
        names: the name of each tensor of backbone and classifier in the file -> the same without
            ``module.`` and ``backbone.``.
        released: the tensors by their names in the file.

    Raises:
        ValueError: if a name is unknown, or no network of the release has these blocks, this width
            or these kernels.
    """
    kernels = _num_kernels({short: released[name] for name, short in names.items()})
    is_mobilenet_v2 = any(short.startswith('features.0.0.') for short in names.values())
    targets = _targets(names, _MOBILENET_V2_NAMES if is_mobilenet_v2 else _RESNET_NAMES)
    tensors = {target: released[name] for name, target in targets.items()}
    if is_mobilenet_v2:
        width = mobilenet_v2_width(tensors, (1.0, 0.75, 0.5))
        plain = dict(type='mmpretrain.MobileNetV2', widen_factor=width)
        layers, out_indices = _MOBILENET_V2_LAYERS, MOBILENET_V2_OUTPUTS
        channels = mobilenet_v2_channels(width)
        name = f'mobilenet-v2-w{100 * width:03.0f}-{kernels}x'
    else:
        depth = resnet_depth(tensors)
        plain = dict(type='mmpretrain.ResNet', depth=depth)
        layers, out_indices = _RESNET_LAYERS, (0, 1, 2, 3)
        channels = resnet_channels(depth)
        name = f'resnet{depth}-{kernels}x'
    backbone = dict(
        type='DynamicBackbone',
        backbone=plain,
        layer=dict(type='ODConv2d', num_kernels=kernels),
        layers=layers,
    )
    meta: dict[str, Any] = dict(model=kind, backbone=backbone, config=_find_config(kind, name))
    if kind == DETECTOR:
        in_detector = dict(backbone, backbone=dict(plain, out_indices=out_indices))
        return IdentifiedModel(meta, build_detector(in_detector, channels), targets)
    meta['head'] = dict(
        type='mmpretrain.LinearClsHead',
        num_classes=tensor_length(tensors, 'head.fc.bias'),
        in_channels=channels[-1],
    )
    return IdentifiedModel(meta, build_classifier(backbone, meta['head']), targets)


def _find_config(kind: str, name: str) -> str | None:
    """The config of a network by its name in configs."""
    if kind == DETECTOR and name in _DETECTORS:
        return f'configs/coco/mask-rcnn_odconv-{_DETECTORS[name]}_fpn_1x_coco.py'
    if kind == CLASSIFIER and name in _CLASSIFIERS:
        return f'configs/imagenet/odconv-{name}_{_CLASSIFIERS[name]}_in1k.py'
    return None


def _targets(names: Mapping[str, str], rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    targets = {}
    for name, short in names.items():
        target = rename(short.replace('.attention.bn.', '.attention.norm.'), rules)
        if target is None:
            raise ValueError(f'{name} of an ODConv MobileNetV2 is unknown')
        targets[name] = target
    return targets


def _num_kernels(tensors: Mapping[str, Tensor]) -> int:
    """The first dimension of the kernels, which is the same in all layers."""
    found = set()
    for name in tensors:
        if _MARK in name:
            weight = f'{name.partition(_MARK)[0]}.weight'
            if weight not in tensors:
                raise ValueError(f'it lacks {weight}')
            found.add(tensors[weight].shape[0] if tensors[weight].dim() == 5 else None)
    if len(found) != 1 or None in found:
        raise ValueError(
            f'expected all ODConv layers to have weights of shape (kernels, output channels, '
            f'input channels, height, width) with one number of kernels, but found {found}'
        )
    return found.pop()
