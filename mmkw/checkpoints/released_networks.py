"""The networks of the authors' releases: their plain families, their names and their models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import ConvNeXt, MobileNetV2, ResNet
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.models.utils import make_divisible
from torch import Tensor, nn

from ..meta_device import on_meta_device
from .plain_tensor_names import FORMATS, rename

CLASSIFIER, DETECTOR = 'ImageClassifier', 'MaskRCNN'
_WIDTHS = (1.0, 0.75, 0.5)
# The stages of MobileNetV2 whose outputs a detector takes. The fourth is the last convolution.
_MOBILENET_V2_OUTPUTS = (1, 2, 4, 7)


@dataclass(frozen=True)
class IdentifiedModel:
    """The model that the tensors of a released file belong to.

    Attributes:
        meta: the class of the ``model``, the configs of its ``backbone`` and of a classifier's
            ``head``, and the file ``config`` for such a model (``None`` if there is none).
        model: without weights: its parameters are on the meta device.
        targets: the released name of each tensor of backbone and classifier -> its name in
            ``model``.
    """

    meta: dict[str, Any]
    model: nn.Module
    targets: dict[str, str]


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of plain networks, of which the releases made dynamic ones.

    Attributes:
        backbone: the name of its class in MMPretrain.
        mark: start of names that every network of the family has and no other.
        size_name: the argument of the backbone that is its size.
        names: rules that turn the release's names into those of a classifier of MMPretrain.
        find_size: from the renamed tensors to that size; raises ValueError if there is none.
        config_name: what the names of configs call the network of a size.
        channels: of the four outputs in a detector, the last being the classifier's input, from
            the size.
        in_detector: arguments of the backbone that a detector adds.
    """

    backbone: str
    mark: str
    size_name: str
    names: Sequence[tuple[str, str]]
    find_size: Callable[[Mapping[str, Tensor]], Any]
    config_name: Callable[[Any], str]
    channels: Callable[[Any], Sequence[int]]
    in_detector: dict[str, Any]


def find_family(names: Iterable[str], known: Iterable[Family]) -> Family:
    """The one of the known families whose names these are.

    Raises:
        ValueError: if they are those of none, or of several.
    """
    names, known = list(names), list(known)
    found = [family for family in known if any(name.startswith(family.mark) for name in names)]
    if len(found) != 1:
        kinds = ' and '.join(family.backbone for family in found) or 'none'
        raise ValueError(
            f'expected names of one of {[family.backbone for family in known]}, but found those '
            f'of {kinds}: {names[-3:]}'
        )
    return found[0]


def new_names(names: Mapping[str, str], family: Family) -> dict[str, str]:
    """Names of tensors in the file -> in a classifier of MMPretrain.

    Args:
        names: those in the file -> the same without ``module.`` and ``backbone.``.
        family: of the network.

    Raises:
        ValueError: if a name is unknown, or means the same tensor as another one.
    """
    targets: dict[str, str] = {}
    for name, inner in names.items():
        # The norm of attentions, as KernelWarehouse and as ODConv calls it.
        inner = re.sub(r'\.attention\.(norm1|bn)\.', '.attention.norm.', inner)
        target = rename(inner, family.names)
        if target is None:
            raise ValueError(f'{name} of a {family.backbone} is unknown')
        if target in targets.values():
            raise ValueError(f'{name} of a {family.backbone} is there twice, under two names')
        targets[name] = target
    return targets


def build_released(
    kind: str,
    backbone: dict[str, Any],
    in_detector: dict[str, Any],
    channels: Sequence[int],
    tensors: Mapping[str, Tensor],
    config: str | None,
    head: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], nn.Module]:
    """A classifier, or the Mask R-CNN of configs/coco, on the meta device.

    Args:
        kind: ``'ImageClassifier'`` or ``'MaskRCNN'``.
        backbone: its config in a classifier.
        in_detector: its config in a detector.
        channels: of the backbone's four outputs.
        tensors: of backbone and classifier by their names in a classifier of MMPretrain.
        config: the file for this model.
        head: options of a classifier's head, if it is no plain linear layer.

    Returns:
        ``meta`` of :class:`IdentifiedModel`, and the model.

    Raises:
        ValueError: if a classifier lacks its head.
    """
    meta = dict(model=kind, backbone=backbone, config=config)
    if kind == DETECTOR:
        # The base of the configs is MMDetection's.
        model_config = get_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py').model
        model_config.backbone = dict(in_detector)
        model_config.neck.in_channels = list(channels)
    else:
        meta['head'] = {
            'type': 'mmpretrain.LinearClsHead',
            'num_classes': _length(tensors, 'head.fc.bias'),
            'in_channels': channels[-1],
            **(head or {}),
        }
        model_config = dict(type=kind, backbone=backbone, head=meta['head'])
    scope = 'mmdet' if kind == DETECTOR else 'mmpretrain'
    with DefaultScope.overwrite_default_scope(scope), on_meta_device():
        return meta, MODELS.build(model_config)


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise ValueError(f'it lacks {name}')
    return tensors[name].numel()


def _count_blocks(names: Iterable[str], pattern: str) -> list[int]:
    """Blocks in each stage, from a pattern of names that finds the numbers of both."""
    blocks = {match.groups() for match in map(re.compile(pattern).match, names) if match}
    counts = Counter(stage for stage, _ in blocks)
    return [counts[stage] for stage in sorted(counts)]


def _resnet_depth(tensors: Mapping[str, Tensor]) -> int:
    found = _count_blocks(tensors, r'backbone\.layer(\d+)\.(\d+)\.')
    has_bottleneck = any('.conv3.' in name for name in tensors)
    for depth, (block, stage_blocks) in ResNet.arch_settings.items():
        if found == list(stage_blocks) and has_bottleneck == (block is Bottleneck):
            return depth
    raise ValueError(
        f'no ResNet of a depth in {sorted(ResNet.arch_settings)} has {tuple(found)} '
        f'{"bottleneck" if has_bottleneck else "basic"} blocks'
    )


def _resnet_channels(depth: int) -> list[int]:
    block, _ = ResNet.arch_settings[depth]
    expansion = 4 if block is Bottleneck else 1
    return [channels * expansion for channels in (64, 128, 256, 512)]


def _mobilenet_v2_width(tensors: Mapping[str, Tensor]) -> float:
    channels = _length(tensors, 'backbone.conv1.bn.weight')
    stems = {make_divisible(32 * width, 8): width for width in _WIDTHS}
    if channels not in stems:
        raise ValueError(
            f'expected the stem of a MobileNetV2 to have {" or ".join(map(str, stems))} '
            f'channels, for widths {" or ".join(map(str, _WIDTHS))}, but it has {channels}'
        )
    return stems[channels]


def _mobilenet_v2_channels(width: float) -> list[int]:
    stages = [MobileNetV2.arch_settings[index][1] for index in _MOBILENET_V2_OUTPUTS[:-1]]
    return [*(make_divisible(channels * width, 8) for channels in stages), 1280]


def _convnext_arch(tensors: Mapping[str, Tensor]) -> str:
    depths = _count_blocks(tensors, r'backbone\.stages\.(\d+)\.(\d+)\.')
    channels = [
        _length(tensors, f'backbone.stages.{stage}.0.norm.weight') for stage in range(len(depths))
    ]
    for arch, settings in ConvNeXt.arch_settings.items():
        if (depths, channels) == (settings['depths'], settings['channels']):
            return arch
    raise ValueError(
        f'no ConvNeXt of {list(ConvNeXt.arch_settings)} has {depths} blocks of {channels} channels'
    )


RESNET = Family(
    'ResNet',
    mark='layer1.0.conv1.',
    size_name='depth',
    names=[(r'fc\.', 'head.fc.'), (r'', 'backbone.')],
    find_size=_resnet_depth,
    config_name='resnet{}'.format,
    channels=_resnet_channels,
    in_detector=dict(out_indices=(0, 1, 2, 3)),
)
MOBILENET_V2 = Family(
    'MobileNetV2',
    mark='features.0.0.',
    size_name='widen_factor',
    names=[
        (r'classifier(\.1(\.conv)?)?\.', 'head.fc.'),
        *FORMATS['MobileNetV2 of torchvision'],
    ],
    find_size=_mobilenet_v2_width,
    config_name=lambda width: f'mobilenet-v2-w{100 * width:03.0f}',
    channels=_mobilenet_v2_channels,
    in_detector=dict(out_indices=_MOBILENET_V2_OUTPUTS),
)
CONVNEXT = Family(
    'ConvNeXt',
    mark='stages.0.0.dwconv.',
    size_name='arch',
    # In detectors, every stage's output has a norm.
    names=[(r'(norm[0-3]\.)', r'backbone.\1'), *FORMATS['ConvNeXt of its authors']],
    find_size=_convnext_arch,
    config_name='convnext-{}'.format,
    channels=lambda arch: ConvNeXt.arch_settings[arch]['channels'],
    in_detector=dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
)
