"""Classifiers with dynamic layers."""

from .dynamic_cls_head import DynamicLinearClsHead
from .linear_cls_head import KWLinearClsHead

__all__ = ['DynamicLinearClsHead', 'KWLinearClsHead']
