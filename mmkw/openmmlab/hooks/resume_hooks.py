"""Hooks that make a resumed run go on as if it had not been interrupted."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner


@HOOKS.register_module()
class WholeEpochHook(Hook):
    """Refuses to go on by epochs from the middle of an epoch.

    MMEngine starts that epoch again, but goes on counting iterations: a run of 4 epochs of 10
    iterations, resumed in iteration 14, trains 44. ``tools/train.py`` always has this hook.

    Raises:
        ValueError: before training, if the checkpoint was written within an epoch
            (``CheckpointHook(by_epoch=False)``) and the loop counts epochs.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare the iteration with the epoch. Iterations of an epoch of another length, as with
        another batch size, are no reason to stop, except where the numbers look alike."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        length = len(runner.train_dataloader)
        if 0 < runner.iter - runner.epoch * length <= length:
            raise ValueError(
                f'the checkpoint is from iteration {runner.iter}, within epoch {runner.epoch + 1} '
                f'of {length} iterations, and training by epochs cannot go on from there; resume '
                f'from a checkpoint of the end of an epoch (CheckpointHook with by_epoch=True), or '
                f'train by iterations (train_cfg.type=IterBasedTrainLoop)'
            )


@HOOKS.register_module()
class SeedHook(Hook):
    """Seeds all random generators anew at the start of every epoch, or of every iteration.

    Random augmentation, dropout and drop path are then the same in a resumed run as in one that was
    not interrupted. The seed follows from the run's seed, the epoch (in a training loop that counts
    iterations, the iteration) and the process, so no states have to be saved::

        custom_hooks = [dict(type='SeedHook')]

    It seeds Python's, NumPy's and PyTorch's generators (CPU and GPUs) of the main process. MMEngine
    seeds those of worker processes when they start. A loop that counts iterations lets them repeat
    what they did before the checkpoint. One that counts epochs starts them at every epoch, unless
    the data loader has ``persistent_workers=True``: such workers go on from states that no
    checkpoint holds, and augmentation in a resumed run differs.

    Raises:
        ValueError: before training, if the loop is neither MMEngine's ``EpochBasedTrainLoop`` nor
            ``IterBasedTrainLoop``.
    """

    # Before other hooks draw random numbers.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the loop; one that counts iterations takes its batches with new seeds."""
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            # No hook runs between the batches that a resumed run skips and the one that it takes.
            loop.dataloader_iterator = _SeededBatches(loop.dataloader_iterator, runner.seed)
        elif not isinstance(loop, EpochBasedTrainLoop):
            raise ValueError(
                f'SeedHook needs an EpochBasedTrainLoop or IterBasedTrainLoop, but got '
                f'{type(loop).__name__}; remove the hook'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the generators for the epoch that begins."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            _seed(runner.seed, runner.epoch)


class _SeededBatches:
    """The same batches, each of which is taken with seeds of its own."""

    def __init__(self, batches: Iterator, run_seed: int) -> None:
        self._batches = batches
        self._run_seed = run_seed
        self._taken = 0

    def __iter__(self) -> _SeededBatches:
        return self

    def __next__(self) -> object:
        _seed(self._run_seed, self._taken)
        self._taken += 1
        return next(self._batches)

    def skip_iter(self, count: int) -> None:
        """Take and drop what a resumed run has seen; onedl-mmengine's loop asks for it.

        Its own iterator moves the sampler on instead, without loading. That would be quicker, but
        the random generators of worker processes would not get to where they were.
        """
        for _ in range(count):
            next(self)


def _seed(run_seed: int, step: int) -> None:
    """Seed all generators of this process."""
    state = np.random.SeedSequence([run_seed, step, get_rank()])
    seed = int(state.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices
