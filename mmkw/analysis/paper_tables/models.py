"""Counting the parameters of the models of configs, without memory for them."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch.overrides import TorchFunctionMode

from ..configs import without_checkpoints

# Models read rates of drop paths and initial values from these, so they need memory.
_WITH_VALUES = (torch.linspace, torch.arange, torch.tensor)


class _ValuesOnCPU(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _WITH_VALUES:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def count_parameters(config: str | os.PathLike) -> int:
    """Count the parameters of the model of a config.

    Args:
        config: path of a config of MMPretrain or MMDetection; checkpoints in it are not read.
    """
    cfg = Config.fromfile(config)
    model = ConfigDict(without_checkpoints(cfg.model.to_dict()))
    scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
    with scope, torch.device('meta'), _ValuesOnCPU():
        network = MODELS.build(model)
    return sum(parameter.numel() for parameter in network.parameters())
