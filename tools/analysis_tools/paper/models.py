"""What the models of configs have, counted in the models themselves."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkw.analysis.configs import without_checkpoints
from mmkw.meta_device import on_meta_device
from mmkw.methods.kernel_warehouse.partition import WarehousePartition
from mmkw.networks.plan_table import built_partitions


class BuiltModels:
    """The models of configs, each built once and without memory for its parameters.

    Args:
        folder: of the configs of MMPretrain and MMDetection. A config's name below is its path
            there, without suffix. Checkpoints in configs are not read.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self._folder = Path(folder)
        self._models: dict[str, nn.Module] = {}

    def parameters(self, config: str) -> int:
        """The parameters of the whole model."""
        return sum(parameter.numel() for parameter in self._build(config).parameters())

    def warehouses(self, config: str) -> list[WarehousePartition]:
        """The warehouses, in the order in which the layers first use them."""
        return list(built_partitions(self._build(config)).values())

    def _build(self, config: str) -> nn.Module:
        if config not in self._models:
            cfg = Config.fromfile(self._folder / f'{config}.py')
            model = ConfigDict(without_checkpoints(cfg.model.to_dict()))
            scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
            with scope, on_meta_device():
                self._models[config] = MODELS.build(model)
        return self._models[config]
