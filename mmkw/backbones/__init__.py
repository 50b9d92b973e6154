"""KernelWarehouse backbones."""

from .convnext import KWConvNeXt, convnext_plan
from .mobilenet_v2 import KWMobileNetV2, mobilenet_v2_plan
from .resnet import KWResNet, resnet_plan

__all__ = [
    'KWConvNeXt',
    'KWMobileNetV2',
    'KWResNet',
    'convnext_plan',
    'mobilenet_v2_plan',
    'resnet_plan',
]
