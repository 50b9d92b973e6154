"""Layers of a ResNet to which libraries give other names, found by shape and order.

The same stem of three convolutions is ``stem.0.conv``, ``stem.0.bn``, ``stem.1.conv``, ... in
MMPretrain, ``stem.0``, ``stem.1``, ``stem.3``, ... in MMDetection and MMSegmentation, and
``conv1.0``, ``conv1.1``, ``conv1.3``, ..., ``bn1`` in timm. Where average pooling comes before a
block's downsampling convolution, the first stage counts it in all of them but MMPretrain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_Shapes = Mapping[str, torch.Size]
# The first group is the same for all layers of a part.
_PARTS = (
    re.compile(r'()(?:stem|conv1|bn1|gn1)\.'),
    re.compile(r'(layer\d+\.\d+\.downsample\.)'),
)


def match_layer_names(found: _Shapes, needed: _Shapes) -> dict[str, str]:
    """The layers of a checkpoint that a network has under another name.

    Two parts, such as stems, are the same if they have equally many layers of each shape. Those
    of one shape then match in the order of their names, with numbers in them read as numbers.

    Args:
        found: shapes of the checkpoint's tensors by their names in the backbone.
        needed: those of the backbone with plain layers.

    Returns:
        Names of layers in the checkpoint -> in the network; none of a part that differs in more
        than names.
    """
    here, there = _parts(needed), _parts(found)
    matched: dict[str, str] = {}
    for part, groups in there.items():
        others = here.get(part, {})
        if _sizes(groups) == _sizes(others):
            for shape, layers in groups.items():
                matched.update(zip(layers, others[shape]))
    return {old: new for old, new in matched.items() if old != new}


def rename_layer(name: str, layers: Mapping[str, str]) -> str:
    """The name of a tensor after its layer was renamed."""
    layer, dot, kind = name.rpartition('.')
    return layers.get(layer, layer) + dot + kind


def _parts(shapes: _Shapes) -> dict[str, dict[torch.Size, list[str]]]:
    """The layers of each part by the shapes of their weights, in order."""
    parts: dict[str, dict[torch.Size, list[str]]] = {}
    for name in sorted(shapes, key=_natural):
        layer, _, kind = name.rpartition('.')
        match = next((m for m in (part.match(name) for part in _PARTS) if m), None)
        if match and kind == 'weight':
            parts.setdefault(match[1], {}).setdefault(shapes[name], []).append(layer)
    return parts


def _sizes(groups: Mapping[torch.Size, list[str]]) -> dict[torch.Size, int]:
    return {shape: len(layers) for shape, layers in groups.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), '') if p.isdecimal() else (-1, p) for p in name.split('.')]
