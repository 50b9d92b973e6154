"""A hook that compares the classes of a config with those of COCO annotations."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.fileio import load
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset, Dataset

from ...networks.replacing import some_of


def misnamed_classes(classes: Sequence[str], names: Sequence[str | None]) -> str | None:
    """What would give objects wrong names, or none.

    Args:
        classes: those of the config.
        names: those of the annotation file, ``None`` where a category has none. Classes are
            numbered in this order.

    Returns:
        A message, or ``None`` where all is right.
    """
    if isinstance(classes, str):
        return f'classes is the text {classes!r}; a single class needs a comma: ({classes!r},)'
    unknown = [name for name in classes if name not in names]
    if unknown:
        return (
            f'the config has classes that the file does not: {some_of(unknown, limit=5)}; the file '
            f'has {some_of(names, limit=5)}'
        )
    order = tuple(name for name in names if name in classes)
    if order != tuple(classes):
        return (
            f'the classes have another order than in the file, so that predictions would get '
            f'wrong names; use {order}'
        )
    return None


@HOOKS.register_module()
class ClassNamesHook(Hook):
    """Ends a training before its first iteration if its classes would get wrong names.

    MMDetection numbers the classes of a dataset in COCO format in the order of the annotation file,
    and passes over objects whose class the config doesn't name. So classes in another order show
    up in the pictures alone, and a misspelled one leaves objects out, or fails in evaluation. Looks
    at the data for training and for validation::

        custom_hooks = [dict(type='ClassNamesHook')]

    Raises:
        ValueError: before training, if a class is not in an annotation file, the order differs, or
            there is no such file.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare the classes with both annotation files.

        Raises:
            ValueError: see the class.
        """
        loaders = [runner.train_dataloader, runner.val_dataloader]
        for dataset in (loader.dataset for loader in loaders if hasattr(loader, 'dataset')):
            self._check(dataset)

    def _check(self, dataset: Dataset) -> None:
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        if isinstance(dataset, ConcatDataset):
            for part in dataset.datasets:
                self._check(part)
            return
        if not hasattr(dataset, 'ann_file'):
            raise ValueError(
                f'{type(dataset).__name__} has no annotation file in COCO format, which '
                f'ClassNamesHook compares the classes with; remove it from custom_hooks'
            )
        names = [category.get('name') for category in load(dataset.ann_file)['categories']]
        message = misnamed_classes(dataset.metainfo['classes'], names)
        if message:
            raise ValueError(f'{dataset.ann_file}: {message}')
