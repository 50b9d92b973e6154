"""OpenMMLab's side: registration, backbones, heads, hooks and the optimizer constructor."""

from . import backbones, heads, hooks
from .registration import register

__all__ = ['backbones', 'heads', 'hooks', 'register']
