"""Names that other libraries give the tensors of plain networks, as MMPretrain's.

A format is a table of rules. The first rule whose pattern a name starts with replaces that start;
what follows it stays. Names that no rule knows have no place in MMPretrain's network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmpretrain.models.backbones import MobileNetV2

_Rule = tuple[str, str]


def rename(name: str, rules: Sequence[_Rule]) -> str | None:
    """A tensor's name in a classifier of MMPretrain, or ``None`` if it has no such tensor.

    The classifier's last layer is ``head.fc``, whatever the head.
    """
    for pattern, replacement in rules:
        renamed, matches = re.subn(rf'\A{pattern}', replacement, name)
        if matches:
            return renamed
    return None


def _layers(source: str, target: str, names: Mapping[str, str]) -> list[_Rule]:
    """Rules for the layers by name of every ``source``, such as a block."""
    return [(f'{source}{re.escape(old)}\\.', f'{target}{new}.') for old, new in names.items()]


def _mobilenet_v2_blocks() -> tuple[list[_Rule], list[_Rule]]:
    """Rules for the blocks in torchvision's and in timm's names."""
    torchvision, timm = {}, {}
    number = 0
    for group, (expand_ratio, _, num_blocks, _) in enumerate(MobileNetV2.arch_settings):
        # Without expansion timm calls the last convolution ``pw``, as the first one elsewhere.
        convs = ('dw', 'pw') if expand_ratio == 1 else ('pw', 'dw', 'pwl')
        last = len(convs) - 1
        for block in range(num_blocks):
            number += 1
            for index, conv in enumerate(convs):
                new = f'layer{group + 1}.{block}.conv.{index}'
                # torchvision nests a convolution with its norm where an activation follows.
                nested = (f'{index}.0', f'{index}.1')
                conv_name, bn_name = nested if index < last else (f'{index}', f'{index + 1}')
                torchvision[f'{number}.conv.{conv_name}'] = f'{new}.conv'
                torchvision[f'{number}.conv.{bn_name}'] = f'{new}.bn'
                timm[f'{group}.{block}.conv_{conv}'] = f'{new}.conv'
                timm[f'{group}.{block}.bn{index + 1}'] = f'{new}.bn'
    return (
        _layers(r'features\.', 'backbone.', torchvision),
        _layers(r'blocks\.', 'backbone.', timm),
    )


_TORCHVISION_MOBILENET_V2, _TIMM_MOBILENET_V2 = _mobilenet_v2_blocks()

# By the name that messages and the meta data of converted checkpoints give the format.
FORMATS: dict[str, Sequence[_Rule]] = {
    'model of OpenMMLab, or the network itself': [
        (r'head\.layers\.head\.', 'head.fc.'),
        (r'', ''),
    ],
    'backbone of OpenMMLab, or ResNet of torchvision or timm': [
        (r'(fc|head\.fc|head\.layers\.head)\.', 'head.fc.'),
        (r'', 'backbone.'),
    ],
    'MobileNetV2 of torchvision': [
        (r'features\.0\.0\.', 'backbone.conv1.conv.'),
        (r'features\.0\.1\.', 'backbone.conv1.bn.'),
        (r'features\.18\.0\.', 'backbone.conv2.conv.'),
        (r'features\.18\.1\.', 'backbone.conv2.bn.'),
        *_TORCHVISION_MOBILENET_V2,
        (r'classifier\.1\.', 'head.fc.'),
    ],
    'MobileNetV2 of timm': [
        (r'conv_stem\.', 'backbone.conv1.conv.'),
        (r'bn1\.', 'backbone.conv1.bn.'),
        (r'conv_head\.', 'backbone.conv2.conv.'),
        (r'bn2\.', 'backbone.conv2.bn.'),
        *_TIMM_MOBILENET_V2,
        (r'classifier\.', 'head.fc.'),
    ],
    'ConvNeXt of its authors': [
        (r'(downsample_layers\.\d\.[01]\.)', r'backbone.\1'),
        (r'(stages\.\d\.\d+\.gamma)', r'backbone.\1'),
        *_layers(
            r'(stages\.\d\.\d+\.)',
            r'backbone.\1',
            {
                'dwconv': 'depthwise_conv',
                'norm': 'norm',
                'pwconv1': 'pointwise_conv1',
                'pwconv2': 'pointwise_conv2',
            },
        ),
        (r'norm\.', 'backbone.norm3.'),
        (r'head\.', 'head.fc.'),
    ],
    'ConvNeXt of timm': [
        (r'stem\.([01])\.', r'backbone.downsample_layers.0.\1.'),
        (r'stages\.(\d)\.downsample\.([01])\.', r'backbone.downsample_layers.\1.\2.'),
        (r'stages\.(\d)\.blocks\.(\d+)\.gamma', r'backbone.stages.\1.\2.gamma'),
        *_layers(
            r'stages\.(\d)\.blocks\.(\d+)\.',
            r'backbone.stages.\1.\2.',
            {
                'conv_dw': 'depthwise_conv',
                'norm': 'norm',
                'mlp.fc1': 'pointwise_conv1',
                'mlp.fc2': 'pointwise_conv2',
            },
        ),
        (r'head\.norm\.', 'backbone.norm3.'),
        (r'head\.fc\.', 'head.fc.'),
    ],
    'ConvNeXt of torchvision': [
        *(
            rule
            for stage in range(4)
            for rule in (
                (
                    rf'features\.{2 * stage}\.([01])\.',
                    rf'backbone.downsample_layers.{stage}.\1.',
                ),
                (
                    rf'features\.{2 * stage + 1}\.(\d+)\.layer_scale',
                    rf'backbone.stages.{stage}.\1.gamma',
                ),
                *_layers(
                    rf'features\.{2 * stage + 1}\.(\d+)\.block\.',
                    rf'backbone.stages.{stage}.\1.',
                    {
                        '0': 'depthwise_conv',
                        '2': 'norm',
                        '3': 'pointwise_conv1',
                        '5': 'pointwise_conv2',
                    },
                ),
            )
        ),
        (r'classifier\.0\.', 'backbone.norm3.'),
        (r'classifier\.2\.', 'head.fc.'),
    ],
    'vision transformer of timm or DeiT': [
        (r'((?:cls_token|pos_embed)\Z)', r'backbone.\1'),
        (r'patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
        *_layers(
            r'blocks\.(\d+)\.',
            r'backbone.layers.\1.',
            {
                'norm1': 'ln1',
                'attn.qkv': 'attn.qkv',
                'attn.proj': 'attn.proj',
                'norm2': 'ln2',
                'mlp.fc1': 'ffn.layers.0.0',
                'mlp.fc2': 'ffn.layers.1',
            },
        ),
        (r'norm\.', 'backbone.ln1.'),
        (r'head\.', 'head.fc.'),
    ],
    'vision transformer of torchvision': [
        (r'class_token\Z', 'backbone.cls_token'),
        (r'encoder\.pos_embedding\Z', 'backbone.pos_embed'),
        (r'conv_proj\.', 'backbone.patch_embed.projection.'),
        *_layers(
            r'encoder\.layers\.encoder_layer_(\d+)\.',
            r'backbone.layers.\1.',
            {
                'ln_1': 'ln1',
                'ln_2': 'ln2',
                'self_attention.out_proj': 'attn.proj',
                'mlp.0': 'ffn.layers.0.0',
                'mlp.3': 'ffn.layers.1',
            },
        ),
        (
            r'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_',
            r'backbone.layers.\1.attn.qkv.',
        ),
        (r'encoder\.ln\.', 'backbone.ln1.'),
        (r'heads\.head\.', 'head.fc.'),
    ],
}
