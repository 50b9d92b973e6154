"""All runs of the comparison: several at once, in an order in which the answer comes early."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmkw.files import remove_partial_files

from .networks import CRITERION, NETWORKS, Network
from .results import Result, Run, read_result, write_result
from .training import Recipe, Show, state_file, train

Results = dict[Run, Result]


def compare(
    work_dir: str | os.PathLike,
    names: Iterable[str] = tuple(NETWORKS),
    recipe: Recipe | None = None,
    processes: int = 2,
    show: Show = print,
) -> Results:
    """Train all networks; finished runs that ``work_dir`` holds are not repeated.

    First each network is trained with seed 0 at each learning rate, then with the other seeds at
    the rate of the best validation accuracy.

    Args:
        work_dir: keeps the results of finished runs and the state of interrupted ones.
        names: keys of ``NETWORKS`` or ``CRITERION``. Defaults to those of ``NETWORKS``.
        recipe: what the runs have in common. Defaults to ``Recipe()``.
        processes: how many runs at once, of one thread each. 1 trains in this process.
        show: takes a line on the progress.

    Returns:
        The results.

    Raises:
        ValueError: if a network is unknown, there are no processes or seeds, or ``work_dir``
            holds runs of another setup.
    """
    recipe = recipe or Recipe()
    networks = named_networks(names)
    if processes < 1:
        raise ValueError(f'the number of processes must be positive, but got {processes}')
    if recipe.seeds < 1:
        raise ValueError(f'the number of seeds must be positive, but got {recipe.seeds}')
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    results = finished(folder, networks, recipe)
    others = [name for name in networks for _ in range(1, recipe.seeds)]
    total = len(networks) * len(recipe.rates) + len(others)
    for phase, later in ((first_runs, others), (other_runs, [])):
        waiting = [run for run in phase(networks, recipe, results) if run not in results]
        for result in _train_all(waiting, networks, recipe, folder, processes):
            results[result.run] = result
            left = [run.network for run in waiting if run not in results] + later
            time_left = _seconds(left, results) / processes
            show(f'{total - len(left)} of {total} runs finished; about {_words(time_left)} left')
    # In the order of the names, not in that of finishing.
    return finished(folder, networks, recipe)


def named_networks(names: Iterable[str]) -> dict[str, Network]:
    """The networks of the comparison with these names.

    Raises:
        ValueError: if one is unknown.
    """
    known = {**NETWORKS, **CRITERION}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'there is no network {unknown[0]!r}; there are: {"; ".join(known)}')
    return {name: known[name] for name in names}


def finished(folder: Path, networks: Mapping[str, Network], recipe: Recipe) -> Results:
    """The results of the runs that a folder holds."""
    results = {}
    for name, network in networks.items():
        for rate in recipe.rates:
            for seed in range(recipe.seeds):
                result = read_result(Run(name, rate, seed), recipe.setup(network), folder)
                if result is not None:
                    results[result.run] = result
    return results


def best_rate(name: str, recipe: Recipe, results: Results) -> float | None:
    """The rate of the best validation accuracy; ``None`` before all have been tried."""
    runs = [Run(name, rate, 0) for rate in recipe.rates]
    if any(run not in results for run in runs):
        return None
    return max(runs, key=lambda run: results[run].val_accuracy).rate


def first_runs(names: Iterable[str], recipe: Recipe, results: Results) -> list[Run]:
    """Seed 0 at each rate, beginning with the one in the middle."""
    middle = recipe.rates[len(recipe.rates) // 2]
    rates = sorted(recipe.rates, key=lambda rate: rate != middle)
    return [Run(name, rate, 0) for rate in rates for name in names]


def other_runs(names: Iterable[str], recipe: Recipe, results: Results) -> list[Run]:
    """The other seeds at the best rate of each network."""
    rates = {name: best_rate(name, recipe, results) for name in names}
    return [
        Run(name, rate, seed) for seed in range(1, recipe.seeds) for name, rate in rates.items()
    ]


def _train_all(
    runs: Sequence[Run],
    networks: Mapping[str, Network],
    recipe: Recipe,
    folder: Path,
    processes: int,
) -> Iterator[Result]:
    """Train the runs in their order; yields the results as they come."""
    if processes == 1:
        for run in runs:
            yield _train(run, networks[run.network], recipe, folder)
        return
    context = get_context('spawn')
    with ProcessPoolExecutor(processes, context) as pool:
        try:
            tasks = [
                pool.submit(_train, run, networks[run.network], recipe, folder) for run in runs
            ]
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _train(run: Run, network: Network, recipe: Recipe, folder: Path) -> Result:
    # The tables of plans.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(run, network, recipe, folder, lambda line: print(line, flush=True))
    finally:
        torch.set_num_threads(threads)
    write_result(result, recipe.setup(network), folder)
    state_file(run, folder).unlink(missing_ok=True)
    return result


def _seconds(names: Sequence[str], results: Results) -> float:
    """What runs of these networks will take, one after the other."""
    taken: dict[str, list[float]] = {}
    for run, result in results.items():
        taken.setdefault(run.network, []).append(result.elapsed)
    means = {name: sum(values) / len(values) for name, values in taken.items()}
    # Networks that have not run yet take as long as the others on average.
    average = sum(means.values()) / len(means)
    return sum(means.get(name, average) for name in names)


def _words(seconds: float) -> str:
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'
