"""Backbones with dynamic layers."""

from .any_backbone import build_kw_backbone
from .convnext import KWConvNeXt, convnext_plan
from .dynamic_backbone import build_dynamic_backbone
from .mobilenet_v2 import KWMobileNetV2, mobilenet_v2_plan
from .recalibrated_resnet import RecalibratedResNet
from .resnet import KWResNet, resnet_plan
from .vision_transformer import KWVisionTransformer, split_qkv, vision_transformer_plan

__all__ = [
    'KWConvNeXt',
    'KWMobileNetV2',
    'KWResNet',
    'KWVisionTransformer',
    'RecalibratedResNet',
    'build_dynamic_backbone',
    'build_kw_backbone',
    'convnext_plan',
    'mobilenet_v2_plan',
    'resnet_plan',
    'split_qkv',
    'vision_transformer_plan',
]
