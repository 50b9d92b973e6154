"""Classification heads."""

from .dropout_cls_head import DropoutLinearClsHead
from .dynamic_cls_head import DynamicLinearClsHead
from .linear_cls_head import KWLinearClsHead

__all__ = ['DropoutLinearClsHead', 'DynamicLinearClsHead', 'KWLinearClsHead']
