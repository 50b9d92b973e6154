"""Training all methods, one run after the other, and going on after an interruption."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ...files import remove_partial_files, write_whole
from .methods import METHODS, Method
from .recipe import Recipe

Show = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What one finished run gave.

    Attributes:
        method, seed: which run.
        parameters: of the model.
        seconds: of the whole run.
        losses: training loss of each iteration.
        accuracies: iteration and validation accuracy in percent, for each evaluation.
    """

    method: str
    seed: int
    parameters: int
    seconds: float
    losses: list[float]
    accuracies: list[tuple[int, float]]

    @property
    def accuracy(self) -> float:
        """Of the last iteration, in percent; no evaluation is chosen after the fact."""
        return self.accuracies[-1][1]


class _Recorder(Hook):
    """Keeps losses and accuracies, and reports each iteration."""

    # The loss is there only after the iteration; the evaluation comes after all hooks of it.
    priority = 'LOWEST'

    def __init__(self, on_iter: Callable[[int], None]) -> None:
        self.on_iter = on_iter
        self.losses: list[float] = []
        self.accuracies: list[tuple[int, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs['loss'].item())
        self.on_iter(runner.iter + 1)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.accuracies.append((runner.iter, float(metrics['accuracy/top1'])))


def compare(
    work_dir: str | os.PathLike,
    methods: Iterable[str] = tuple(METHODS),
    seeds: int = 3,
    recipe: Recipe | None = None,
    show: Show = print,
) -> list[Result]:
    """Train every method with every seed; runs that ``work_dir`` holds are not repeated.

    The seeds are the outer loop, so that an interrupted comparison has about the same number of
    runs of each method.

    Args:
        work_dir: each finished run writes a file here; a run that was interrupted starts anew.
        methods: names in ``METHODS``. Defaults to all.
        seeds: how many; they are 0, 1, ...
        recipe: what the runs have in common. Defaults to ``Recipe()``.
        show: takes a line on the progress, several times a run.

    Returns:
        The results, by seed and method.

    Raises:
        ValueError: if a method is unknown, there are no seeds, or ``work_dir`` holds runs of
            another recipe.
    """
    recipe = recipe or Recipe()
    names = list(dict.fromkeys(methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f'there is no method {unknown[0]!r}; there are: {"; ".join(METHODS)}')
    if seeds < 1:
        raise ValueError(f'the number of seeds must be positive, but got {seeds}')
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    runs = [(name, seed) for seed in range(seeds) for name in names]
    done = {run: _read(_file(folder, *run), recipe, METHODS[run[0]]) for run in runs}
    for number, (name, seed) in enumerate(runs, start=1):
        if done[name, seed] is not None:
            continue
        clock = _Clock(name, recipe.iters, done)

        def on_iter(iteration: int, number=number, name=name, seed=seed, clock=clock) -> None:
            if iteration % max(recipe.iters // 10, 1) == 0:
                show(
                    f'run {number} of {len(runs)}: {name}, seed {seed}, iteration '
                    f'{iteration} of {recipe.iters}; {clock.left(iteration)} left'
                )

        result = _train(name, seed, recipe, folder / 'runs', on_iter)
        content = dict(recipe=asdict(recipe), setup=asdict(METHODS[name]), result=asdict(result))
        write_whole(json.dumps(content) + '\n', _file(folder, name, seed), sync=True)
        done[name, seed] = result
    return [done[run] for run in runs]


def _train(
    name: str, seed: int, recipe: Recipe, folder: Path, on_iter: Callable[[int], None]
) -> Result:
    config = Config(recipe.config(METHODS[name], seed, str(folder / _slug(name, seed))))
    # Unique, as MMEngine keeps loggers and message hubs by this name.
    config.experiment_name = f'{_slug(name, seed)}-{time.time_ns()}'
    start = time.perf_counter()
    recorder = _Recorder(on_iter)
    # The tables of plans are printed by the logger of the moment, before the run has its own.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    runner = Runner.from_cfg(config)
    runner.register_hook(recorder)
    runner.train()
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    del runner
    gc.collect()
    return Result(
        name, seed, parameters, time.perf_counter() - start, recorder.losses, recorder.accuracies
    )


class _Clock:
    """Time left, from what finished runs took."""

    def __init__(self, name: str, iters: int, done: dict) -> None:
        self.start, self.iters, self.name = time.perf_counter(), iters, name
        self.taken: dict[str, list[float]] = {}
        for result in done.values():
            if result is not None:
                self.taken.setdefault(result.method, []).append(result.seconds)
        self.waiting = [run[0] for run, result in done.items() if result is None]
        self.waiting.remove(name)

    def left(self, iteration: int) -> str:
        """The estimate, in words."""
        own = (time.perf_counter() - self.start) / iteration * self.iters
        known = {name: sum(times) / len(times) for name, times in self.taken.items()}
        known.setdefault(self.name, own)
        # Methods that have not run yet take as long as the others on average.
        average = sum(known.values()) / len(known)
        seconds = own * (1 - iteration / self.iters)
        seconds += sum(known.get(name, average) for name in self.waiting)
        return f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'


def _read(path: Path, recipe: Recipe, method: Method) -> Result | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding='utf-8'))
    # As it is read back: tuples are lists in JSON.
    wanted = json.loads(json.dumps(dict(recipe=asdict(recipe), setup=asdict(method))))
    for part, values in wanted.items():
        for key, value in values.items():
            found = content[part].get(key)
            if found != value:
                raise ValueError(
                    f'{path} is a run with {key}={found!r}, but this comparison has '
                    f'{key}={value!r}; name another --work-dir, or remove the old runs'
                )
    result = content['result']
    result['accuracies'] = [tuple(pair) for pair in result['accuracies']]
    return Result(**result)


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f'{_slug(name, seed)}.json'


def _slug(name: str, seed: int) -> str:
    return f'{re.sub("[^a-z0-9]+", "-", name.lower())}_seed{seed}'
