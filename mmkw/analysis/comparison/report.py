"""The comparison's table and its plot of curves."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...files import write_whole
from ..figures import plt, save_figure
from .runs import Result

BASELINE = 'plain'


class Row(NamedTuple):
    """What the runs of one method gave; accuracies in percent.

    Attributes:
        method: its name.
        parameters: of the model.
        accuracies: of each seed, after the last iteration.
        mean, deviation: of them; the deviation is that of a sample, ``nan`` for one seed.
        difference: mean over the seeds of this method's accuracy less the plain network's with
            the same seed; ``None`` for the plain network, or if it was left out.
        margin: half the width of the 95 % interval of the difference, by Student's t.
        seconds: mean time of a run.
    """

    method: str
    parameters: int
    accuracies: list[float]
    mean: float
    deviation: float
    difference: float | None
    margin: float | None
    seconds: float

    @property
    def verdict(self) -> str:
        """What the spread carries."""
        if self.difference is None:
            return ''
        if not abs(self.difference) > self.margin:
            return 'not shown'
        return 'better' if self.difference > 0 else 'worse'


def summarise(results: Sequence[Result]) -> list[Row]:
    """One row for each method, in the order in which they come."""
    by_method: dict[str, dict[int, Result]] = {}
    for result in results:
        by_method.setdefault(result.method, {})[result.seed] = result
    rows = []
    for method, runs in by_method.items():
        values = [run.accuracy for run in runs.values()]
        difference = margin = None
        if method != BASELINE and BASELINE in by_method:
            plain = by_method[BASELINE]
            gains = [run.accuracy - plain[seed].accuracy for seed, run in runs.items()]
            difference, margin = float(np.mean(gains)), _margin(gains)
        parameters = next(iter(runs.values())).parameters
        seconds = float(np.mean([run.seconds for run in runs.values()]))
        rows.append(
            Row(
                method, parameters, values, float(np.mean(values)), _deviation(values), difference,
                margin, seconds,
            )
        )  # fmt: skip
    return rows


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _margin(values: Sequence[float]) -> float:
    # SciPy comes with scikit-learn, whose digits are the data.
    from scipy.stats import t

    count = len(values)
    return float(t.ppf(0.975, count - 1) * _deviation(values) / math.sqrt(count))


def as_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    seeds = len(rows[0].accuracies)
    lines = [
        f'| method | parameters | accuracy of the {seeds} seeds, % | mean ± deviation | difference '
        'to plain, 95 % interval | difference | seconds a run |',
        '|---|---:|---|---:|---:|---|---:|',
    ]
    for row in rows:
        interval = ''
        if row.difference is not None:
            interval = f'{row.difference:+.2f} ± {row.margin:.2f}'
        values = ', '.join(f'{value:.2f}' for value in row.accuracies)
        lines.append(
            f'| {row.method} | {row.parameters:,} | {values} | {row.mean:.2f} ± '
            f'{row.deviation:.2f} | {interval} | {row.verdict} | {row.seconds:.1f} |'
        )
    return '\n'.join(lines) + '\n'


def plot_curves(results: Sequence[Result], out: str | os.PathLike) -> None:
    """Draw training loss and validation accuracy over the iterations; bands are one deviation."""
    methods = list(dict.fromkeys(result.method for result in results))
    colours = plt.get_cmap('tab10').colors
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout='constrained')
    for number, method in enumerate(methods):
        runs = [result for result in results if result.method == method]
        style = dict(
            color=colours[number % len(colours)], linestyle='--' if ',' in method else '-', lw=1.4
        )
        losses = np.array([_smooth(run.losses) for run in runs])
        left.plot(np.arange(1, losses.shape[1] + 1), losses.mean(0), label=method, **style)
        iterations = [iteration for iteration, _ in runs[0].accuracies]
        values = np.array([[value for _, value in run.accuracies] for run in runs])
        right.plot(iterations, values.mean(0), marker='.', label=method, **style)
        if len(runs) > 1:
            mean, deviation = values.mean(0), values.std(0, ddof=1)
            band = dict(color=style['color'], alpha=0.1, lw=0)
            right.fill_between(iterations, mean - deviation, mean + deviation, **band)
    left.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    right.set(xlabel='iteration', ylabel='validation accuracy, %')
    for axis in (left, right):
        axis.grid(alpha=0.25)
    # Where the losses have fallen there is room.
    left.legend(loc='upper right', frameon=False, fontsize=8)
    save_figure(figure, out)


def _smooth(values: Sequence[float], window: int = 20) -> np.ndarray:
    """Means over the last ``window`` values, fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def write_report(results: Sequence[Result], folder: str | os.PathLike) -> str:
    """Write ``comparison.md`` and ``comparison.png``; returns the table."""
    table = as_table(summarise(results))
    write_whole(table, Path(folder) / 'comparison.md')
    plot_curves(results, Path(folder) / 'comparison.png')
    return table
