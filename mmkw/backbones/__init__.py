"""KernelWarehouse backbones."""

from .resnet import KWResNet, resnet_plan

__all__ = ['KWResNet', 'resnet_plan']
