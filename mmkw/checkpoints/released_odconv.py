"""The networks in checkpoints of the ODConv release, from names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from .released_networks import (
    CLASSIFIER,
    DETECTOR,
    MOBILENET_V2,
    RESNET,
    IdentifiedModel,
    build_released,
    find_family,
    new_names,
)

# Every ODConv layer has a channel attention, and no other layer has one.
_MARK = '.attention.channel_fc.'
# Which convolutions are ODConv layers; see the docs of DynamicBackbone.
_LAYERS = {RESNET: ['layer*.conv?'], MOBILENET_V2: ['layer*', 'conv2.conv']}
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
    family = find_family(names.values(), _LAYERS)
    targets = new_names(names, family)
    tensors = {target: released[name] for name, target in targets.items()}
    size = family.find_size(tensors)
    plain = {'type': f'mmpretrain.{family.backbone}', family.size_name: size}
    backbone = dict(
        type='DynamicBackbone',
        backbone=plain,
        layer=dict(type='ODConv2d', num_kernels=kernels),
        layers=list(_LAYERS[family]),
    )
    meta, model = build_released(
        kind,
        backbone,
        in_detector=dict(backbone, backbone={**plain, **family.in_detector}),
        channels=family.channels(size),
        tensors=tensors,
        config=_find_config(kind, f'{family.config_name(size)}-{kernels}x'),
    )
    return IdentifiedModel(meta, model, targets)


def _find_config(kind: str, name: str) -> str | None:
    """The config of a network by its name in configs."""
    if kind == DETECTOR and name in _DETECTORS:
        return f'configs/coco/mask-rcnn_odconv-{_DETECTORS[name]}_fpn_1x_coco.py'
    if kind == CLASSIFIER and name in _CLASSIFIERS:
        return f'configs/imagenet/odconv-{name}_{_CLASSIFIERS[name]}_in1k.py'
    return None


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
