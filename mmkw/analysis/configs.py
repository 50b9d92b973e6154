"""What configs say about models and data, and models without the weights to start from."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn


def type_name(config: dict, default: str | None = None) -> str:
    """The name in a config's ``type``, without scope; lazy configs hold the class itself."""
    kind = config.get('type', default)
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def without_checkpoints(config: Any) -> Any:
    """A copy of a model's config without weights to start from, which need not be there."""
    if isinstance(config, dict):
        return {
            key: without_checkpoints(value)
            for key, value in config.items()
            if not (key == 'init_cfg' and isinstance(value, dict) and 'checkpoint' in value)
        }
    return [without_checkpoints(value) for value in config] if type(config) is list else config


def build_without_checkpoints(config: Config) -> nn.Module:
    """Build a config's model with random weights; its default scope is the current one then."""
    init_default_scope(config.get('default_scope', 'mmengine'))
    return MODELS.build(ConfigDict(without_checkpoints(config.model.to_dict())))


def innermost_dataset(loader: ConfigDict) -> ConfigDict:
    """The config of the dataset that reads a dataloader's images, within others that wrap it."""
    dataset = loader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset
