"""Checkpoints: reading them safely, writing them whole, converting released ones."""

from .loading import CheckpointError, UnsafeCheckpointError, allow_classes, load_checkpoint
from .plain import WarmStart, convert_plain, warm_start
from .released import convert_released
from .saving import save_checkpoint

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'WarmStart',
    'allow_classes',
    'convert_plain',
    'convert_released',
    'load_checkpoint',
    'save_checkpoint',
    'warm_start',
]
