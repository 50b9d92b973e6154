"""Checkpoints: reading them safely, writing them whole, converting and publishing them.

Importing this has MMEngine do the same with its checkpoints, see :func:`install`.
"""

from .installation import install, uninstall
from .loading import CheckpointError, UnsafeCheckpointError, allow_classes, load_checkpoint
from .publishing import publish_checkpoint
from .released_conversion import convert_released
from .resuming import latest_checkpoint, take_seed
from .saving import save_checkpoint
from .warm_starting import WarmStart, convert_plain, warm_start

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'WarmStart',
    'allow_classes',
    'convert_plain',
    'convert_released',
    'install',
    'latest_checkpoint',
    'load_checkpoint',
    'publish_checkpoint',
    'save_checkpoint',
    'take_seed',
    'uninstall',
    'warm_start',
]

install()
