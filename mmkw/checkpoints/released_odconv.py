"""The networks in checkpoints of the ODConv release, from names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmpretrain.models import ResNet
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor

from .plain_tensor_names import FORMATS, rename

# Every ODConv layer has a channel attention, and no other layer has one.
_MARK = '.attention.channel_fc.'
_RESNET_NAMES = [(r'fc\.', 'head.fc.'), (r'', 'backbone.')]
_MOBILENET_V2_NAMES = FORMATS['MobileNetV2 of torchvision']
# Which convolutions are ODConv layers; see the docs of DynamicBackbone.
_RESNET_LAYERS = ['layer*.conv?']
_MOBILENET_V2_LAYERS = ['layer*', 'conv2.conv']
# MobileNetV2's widths, by the channels of the stem.
_WIDTHS = {32: 1.0, 24: 0.75, 16: 0.5}
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


class ODConvNetwork(NamedTuple):
    """A network of the ODConv release.

    Attributes:
        backbone: its config.
        out_indices: of the plain backbone in a detector.
        targets: the released name of each tensor -> its name in a classifier of MMPretrain.
        configs: the files for ``'ImageClassifier'`` and ``'MaskRCNN'``, where there are any.
    """

    backbone: dict[str, Any]
    out_indices: tuple[int, ...]
    targets: dict[str, str]
    configs: dict[str, str]

    @property
    def backbone_in_detector(self) -> dict[str, Any]:
        plain = dict(self.backbone['backbone'], out_indices=self.out_indices)
        return dict(self.backbone, backbone=plain)


def is_odconv(names: Iterable[str]) -> bool:
    """Whether tensors with these names are those of an ODConv network."""
    return any(_MARK in name for name in names)


def identify_odconv(names: Mapping[str, str], released: Mapping[str, Tensor]) -> ODConvNetwork:
    """Which ResNet or MobileNetV2 it is, and of how many kernels.

    Args:
        names: the name of each tensor in the file -> the same without ``module.`` and
            ``backbone.``.
        released: the tensors by their names in the file.

    Raises:
        ValueError: if a name is unknown, or no network of the release has these blocks, this width
            or these kernels.
    """
    tensors = {short: released[name] for name, short in names.items()}
    kernels = _num_kernels(tensors)
    if any(short.startswith('features.0.0.') for short in tensors):
        width = _mobilenet_v2_width(tensors)
        plain = dict(type='mmpretrain.MobileNetV2', widen_factor=width)
        rules, layers, out_indices = _MOBILENET_V2_NAMES, _MOBILENET_V2_LAYERS, (1, 2, 4, 7)
        name = f'mobilenet-v2-w{100 * width:03.0f}-{kernels}x'
    else:
        depth = _resnet_depth(tensors)
        plain = dict(type='mmpretrain.ResNet', depth=depth)
        rules, layers, out_indices = _RESNET_NAMES, _RESNET_LAYERS, (0, 1, 2, 3)
        name = f'resnet{depth}-{kernels}x'
    backbone = dict(
        type='DynamicBackbone',
        backbone=plain,
        layer=dict(type='ODConv2d', num_kernels=kernels),
        layers=layers,
    )
    configs = {}
    if name in _CLASSIFIERS:
        config = f'configs/imagenet/odconv-{name}_{_CLASSIFIERS[name]}_in1k.py'
        configs['ImageClassifier'] = config
    if name in _DETECTORS:
        config = f'configs/coco/mask-rcnn_odconv-{_DETECTORS[name]}_fpn_1x_coco.py'
        configs['MaskRCNN'] = config
    return ODConvNetwork(backbone, out_indices, _targets(names, rules), configs)


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


def _mobilenet_v2_width(tensors: Mapping[str, Tensor]) -> float:
    stem = tensors.get('features.0.0.weight')
    channels = None if stem is None else len(stem)
    if channels not in _WIDTHS:
        raise ValueError(
            f'expected the stem of an ODConv MobileNetV2 to have one of {list(_WIDTHS)} channels, '
            f'for widths {list(_WIDTHS.values())}, but it has {channels}'
        )
    return _WIDTHS[channels]


def _resnet_depth(tensors: Mapping[str, Tensor]) -> int:
    matches = (re.match(r'layer(\d)\.(\d+)\.', name) for name in tensors)
    blocks = {match.groups() for match in matches if match}
    found = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(1, 5))
    has_bottleneck = any('.conv3.' in name for name in tensors)
    for depth, (block, stage_blocks) in ResNet.arch_settings.items():
        if found == tuple(stage_blocks) and has_bottleneck == (block is Bottleneck):
            return depth
    raise ValueError(
        f'no ResNet of a depth in {sorted(ResNet.arch_settings)} has {found} '
        f'{"bottleneck" if has_bottleneck else "basic"} blocks'
    )
