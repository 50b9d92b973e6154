"""Models of configs with the weights of checkpoints, ready to be exported."""

from __future__ import annotations

import logging

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from torch import nn

from ..analysis.configs import build_without_checkpoints


def load_model(config: Config, checkpoint: str) -> nn.Module:
    """Build a config's model with the weights of a checkpoint, in evaluation mode.

    Args:
        config: of a model of any OpenMMLab package.
        checkpoint: file or URL.

    Raises:
        RuntimeError: if the checkpoint does not fit the model exactly.
    """
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    model = build_without_checkpoints(config)
    load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    return model.eval()
