"""Checkpoints: reading them safely, writing them whole, converting and publishing them."""

from . import schemes
from .loading import CheckpointError, UnsafeCheckpointError, allow_classes, load_checkpoint
from .plain import WarmStart, convert_plain, warm_start
from .publishing import publish_checkpoint
from .released import convert_released
from .resuming import latest_checkpoint
from .saving import save_checkpoint

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'WarmStart',
    'allow_classes',
    'convert_plain',
    'convert_released',
    'latest_checkpoint',
    'load_checkpoint',
    'publish_checkpoint',
    'save_checkpoint',
    'schemes',
    'warm_start',
]
