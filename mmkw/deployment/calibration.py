"""The images on which trained networks are calibrated."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from ..analysis.configs import innermost_dataset

SPLITS = ('train', 'val', 'test')


def calibration_loader(config: Config, split: str = 'train') -> ConfigDict:
    """The config of a dataloader of randomly chosen images, prepared as for testing.

    The batches have the size that they have in the config's dataloader of the split. The choice is
    the same each time. Datasets that repeat, balance or mix images are left out around those that
    read them.

    Args:
        config: has a dataloader of the split and a ``test_dataloader``.
        split: ``'train'``, ``'val'`` or ``'test'``. Defaults to ``'train'``.

    Raises:
        ValueError: if the config has no such dataloaders.
    """
    for name in (f'{split}_dataloader', 'test_dataloader'):
        if not config.get(name):
            raise ValueError(
                f'the config has no {name}, which calibration needs; add it, or choose another '
                f'split among {", ".join(SPLITS)}'
            )
    loader = copy.deepcopy(config[f'{split}_dataloader'])
    pipeline = innermost_dataset(config.test_dataloader).pipeline
    loader.dataset = _with_pipeline(loader.dataset, pipeline)
    loader.sampler = ConfigDict(type='DefaultSampler', shuffle=True, seed=0)
    return loader


def _with_pipeline(dataset: ConfigDict, pipeline: Sequence[dict]) -> ConfigDict:
    if 'dataset' in dataset:
        return _with_pipeline(dataset.dataset, pipeline)
    if 'datasets' in dataset:
        dataset.datasets = [_with_pipeline(part, pipeline) for part in dataset.datasets]
    else:
        dataset.pipeline = copy.deepcopy(pipeline)
    return dataset
