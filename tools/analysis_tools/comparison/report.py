"""The comparison's table and its plot of learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmkw.analysis.figures import save_figure
from mmkw.files import write_whole

from .results import Result
from .runs import Results, best_rate
from .training import Recipe

BASELINE = 'plain'


@dataclass(frozen=True)
class Row:
    """What the runs of one network at its best rate gave.

    Attributes:
        network: its name.
        runs: by seed.
        margin: half the width of the 95 % interval of the difference to the plain network;
            ``nan`` without a second seed of any network.
        difference: of the mean test accuracies, in points; ``None`` for the plain network, or if
            it was left out.
    """

    network: str
    runs: Sequence[Result]
    difference: float | None
    margin: float

    @property
    def mean(self) -> float:
        """Test accuracy in percent."""
        return float(np.mean([run.test_accuracy for run in self.runs]))

    @property
    def gain(self) -> str:
        """The difference and what its interval carries."""
        if self.difference is None:
            return ''
        if math.isnan(self.margin):
            return f'{self.difference:+.2f}'
        if abs(self.difference) <= self.margin:
            verdict = 'not shown'
        else:
            verdict = 'better' if self.difference > 0 else 'worse'
        return f'{self.difference:+.2f} ± {self.margin:.2f}, {verdict}'


def summarise(results: Results, recipe: Recipe) -> list[Row]:
    """A row for each network of which all rates have been tried, in the order of the results.

    The interval is Student's t for the difference of two means, with one standard deviation for
    all networks, which is estimated from the seeds of all of them.
    """
    runs: dict[str, list[Result]] = {}
    for name in dict.fromkeys(run.network for run in results):
        rate = best_rate(name, recipe, results)
        chosen = [results[run] for run in results if run[:2] == (name, rate)]
        if chosen:
            runs[name] = sorted(chosen, key=lambda result: result.run.seed)
    values = {name: [run.test_accuracy for run in found] for name, found in runs.items()}
    half_width = _half_width(values)
    plain = values.get(BASELINE)
    rows = []
    for name, own in values.items():
        difference, margin = None, math.nan
        if plain is not None and name != BASELINE:
            difference = float(np.mean(own) - np.mean(plain))
            margin = half_width * math.sqrt(1 / len(own) + 1 / len(plain))
        rows.append(Row(name, runs[name], difference, margin))
    return rows


def _half_width(values: Mapping[str, Sequence[float]]) -> float:
    """Student's t at 97.5 % times the common standard deviation; ``nan`` if there is none."""
    # SciPy comes with scikit-learn, whose digits are the data.
    from scipy.stats import t

    freedom = sum(len(own) - 1 for own in values.values())
    if freedom == 0:
        return math.nan
    squares = sum(np.var(own) * len(own) for own in values.values())
    return float(t.ppf(0.975, freedom) * math.sqrt(squares / freedom))


def as_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        '| network | parameters | multiply-adds, M | seconds a run | rate | training accuracy, % | '
        'last tenth, points | test accuracy, % | difference to plain |',
        '|---|---:|---:|---:|---:|---:|---:|---:|---|',
    ]
    for row in rows:
        first = row.runs[0]
        seconds = np.mean([run.seconds for run in row.runs])
        train = np.mean([run.curve[-1].train_accuracy for run in row.runs])
        late = np.mean([_late_gain(run) for run in row.runs])
        test = f'{row.mean:.2f}'
        if len(row.runs) > 1:
            test += f' ({", ".join(f"{run.test_accuracy:.2f}" for run in row.runs)})'
        lines.append(
            f'| {row.network} | {first.parameters:,} | {first.operations / 1e6:.1f} | '
            f'{seconds:.0f} | {first.run.rate:g} | {train:.1f} | {late:+.1f} | {test} | '
            f'{row.gain} |'
        )
    return '\n'.join(lines) + '\n'


def _late_gain(run: Result) -> float:
    """What the last tenth of the training added to the validation accuracy, in points."""
    early = [point for point in run.curve if point.progress <= 0.9]
    return run.val_accuracy - early[-1].val_accuracy


def plot_curves(rows: Sequence[Row], out: Path) -> None:
    """Draw training loss and validation accuracy at the best rates, means over the seeds."""
    colours = matplotlib.colormaps['tab10'].colors
    figure = Figure(figsize=(11, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for number, row in enumerate(rows):
        points = np.mean([run.curve for run in row.runs], axis=0)
        style = dict(color=colours[number % len(colours)], marker='.', lw=1.2, label=row.network)
        left.plot(100 * points[:, 0], points[:, 1], **style)
        right.plot(100 * points[:, 0], points[:, 3], **style)
    left.set(xlabel='part of the training, %', ylabel='training loss', ylim=(0, None))
    right.set(xlabel='part of the training, %', ylabel='validation accuracy, %')
    for axis in (left, right):
        axis.grid(alpha=0.25)
    right.legend(loc='lower right', frameon=False, fontsize=8)
    save_figure(figure, out)


def write_report(results: Results, recipe: Recipe, work_dir: str | Path) -> str:
    """Write ``comparison.md`` and ``comparison.png`` to ``work_dir``; returns the table."""
    rows = summarise(results, recipe)
    if not rows:
        return 'no network has been trained at all rates yet\n'
    table = as_table(rows)
    write_whole(table, Path(work_dir) / 'comparison.md')
    plot_curves(rows, Path(work_dir) / 'comparison.png')
    return table
