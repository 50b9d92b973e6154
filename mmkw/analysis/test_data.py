"""Running models on a config's test data, or on images prepared in the same way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.utils import ProgressBar
from torch import nn
from torch.utils.data import DataLoader

from .configs import type_name


@torch.no_grad()
def run_on_loader(model: nn.Module, loader: DataLoader, max_batches: int | None = None) -> None:
    """Let a model predict a loader's batches in evaluation mode, with MMEngine's progress bar.

    Args:
        model: of OpenMMLab, with a ``test_step``.
        loader: gives batches.
        max_batches: stop after so many. Defaults to ``None``, all.

    Raises:
        ValueError: if ``max_batches`` is not positive.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f'the number of batches must be at least 1, but got {max_batches}')
    model.eval()
    total = len(loader) if max_batches is None else min(max_batches, len(loader))
    bar = ProgressBar(total, file=sys.stderr)
    for _, data in zip(range(total), loader):
        model.test_step(data)
        bar.update()
    bar.file.write('\n')


@torch.no_grad()
def run_on_image(model: nn.Module, config: Config, image: str) -> Any:
    """Let a model predict one image file, prepared by the config's test pipeline."""
    dataset = innermost_dataset(config.test_dataloader)
    pipeline = Compose(_without_annotations(dataset.pipeline))
    model.eval()
    return model.test_step(pseudo_collate([pipeline(dict(img_path=image, img_id=0))]))


def innermost_dataset(loader: ConfigDict) -> ConfigDict:
    """The config of the dataset that reads a dataloader's images, within others that wrap it."""
    dataset = loader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _without_annotations(pipeline: Sequence[dict]) -> list[dict]:
    """The transforms that an image without annotations can pass."""
    return [step for step in pipeline if not type_name(step).startswith('Load') or _loads(step)]


def _loads(step: dict) -> bool:
    return type_name(step).startswith('LoadImage')
