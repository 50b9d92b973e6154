"""The size of a plain network, from its tensors under the names of an MMPretrain classifier."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mmpretrain.models.backbones import ConvNeXt, MobileNetV2, ResNet
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.models.utils import make_divisible
from torch import Tensor

# The stages of MobileNetV2 whose outputs a detector takes. The fourth is the last convolution.
MOBILENET_V2_OUTPUTS = (1, 2, 4, 7)


def resnet_depth(names: Iterable[str]) -> int:
    """Depth of the ResNet that has these tensors.

    Raises:
        ValueError: if MMPretrain has no ResNet with these numbers of blocks.
    """
    names = list(names)
    found = _count_blocks(names, r'backbone\.layer(\d+)\.(\d+)\.')
    has_bottleneck = any('.conv3.' in name for name in names)
    for depth, (block, stage_blocks) in ResNet.arch_settings.items():
        if found == list(stage_blocks) and has_bottleneck == (block is Bottleneck):
            return depth
    raise ValueError(
        f'no ResNet of a depth in {sorted(ResNet.arch_settings)} has {tuple(found)} '
        f'{"bottleneck" if has_bottleneck else "basic"} blocks'
    )


def resnet_channels(depth: int) -> list[int]:
    """Channels of the outputs of the four stages."""
    block, _ = ResNet.arch_settings[depth]
    expansion = 4 if block is Bottleneck else 1
    return [channels * expansion for channels in (64, 128, 256, 512)]


def mobilenet_v2_width(tensors: Mapping[str, Tensor], widths: Sequence[float]) -> float:
    """Which of the widths the MobileNetV2 with these tensors has, by its stem.

    Raises:
        ValueError: if the stem has the channels of none of them, or the norm of the stem is
            missing.
    """
    channels = tensor_length(tensors, 'backbone.conv1.bn.weight')
    stems = {make_divisible(32 * width, 8): width for width in widths}
    if channels not in stems:
        raise ValueError(
            f'expected the stem of a MobileNetV2 to have {" or ".join(map(str, stems))} '
            f'channels, for widths {" or ".join(map(str, widths))}, but it has {channels}'
        )
    return stems[channels]


def mobilenet_v2_channels(width: float) -> list[int]:
    """Channels of :data:`MOBILENET_V2_OUTPUTS`, for widths up to 1."""
    stages = [MobileNetV2.arch_settings[index][1] for index in MOBILENET_V2_OUTPUTS[:-1]]
    return [*(make_divisible(channels * width, 8) for channels in stages), 1280]


def convnext_arch(tensors: Mapping[str, Tensor]) -> str:
    """The ``arch`` of the ConvNeXt that has these tensors.

    Raises:
        ValueError: if MMPretrain has no ConvNeXt with these numbers of blocks and channels.
    """
    depths = _count_blocks(tensors, r'backbone\.stages\.(\d+)\.(\d+)\.')
    channels = [
        tensor_length(tensors, f'backbone.stages.{stage}.0.norm.weight')
        for stage in range(len(depths))
    ]
    for arch, settings in ConvNeXt.arch_settings.items():
        if (depths, channels) == (settings['depths'], settings['channels']):
            return arch
    raise ValueError(
        f'no ConvNeXt of {list(ConvNeXt.arch_settings)} has {depths} blocks of {channels} channels'
    )


def convnext_channels(arch: str) -> list[int]:
    """Channels of the outputs of the four stages."""
    return ConvNeXt.arch_settings[arch]['channels']


def tensor_length(tensors: Mapping[str, Tensor], name: str) -> int:
    """The number of values in a tensor.

    Raises:
        ValueError: if it is missing.
    """
    if name not in tensors:
        raise ValueError(f'it lacks {name}')
    return tensors[name].numel()


def _count_blocks(names: Iterable[str], pattern: str) -> list[int]:
    """Blocks in each stage, from a pattern of names that finds the numbers of both."""
    blocks = {match.groups() for match in map(re.compile(pattern).match, names) if match}
    counts = Counter(stage for stage, _ in blocks)
    return [counts[stage] for stage in sorted(counts)]
