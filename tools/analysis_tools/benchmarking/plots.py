"""Plots of what a benchmark measured, relative to the plain networks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mmkw.analysis.figures import save_figure
from mmkw.analysis.timing import Spread

from .tables import AXIS_LABELS, MODE_TITLES, describe_layer

COLOURS = ('#1f5fa8', '#7fb0dd', '#d8730f', '#3a923a')
GREY = '#7f7f7f'


def plot_models(results: dict, out: Path) -> None:
    """Plot time and memory of the networks relative to their plain ones, one panel for each mode.

    Args:
        results: As in benchmark.json.
        out: The picture to write; its suffix names the format.
    """
    models = [model for model in results['models'] if model['name'] != model['plain']]
    models = models or results['models']
    panels = [mode for mode in MODE_TITLES if any(mode in model for model in models)]
    bars = {mode: _bars(models, mode) for mode in panels}
    most = max(len(series) for series in bars.values())
    size = (1.8 + 4.1 * len(panels), 1.9 + 0.22 * most * len(models))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axis, mode in zip(axes[0], panels):
        series = bars[mode]
        height = 0.8 / len(series)
        highs = [high for ratios in series.values() for _, _, high in ratios]
        largest = max(high for high in highs if not math.isnan(high))
        for index, (label, ratios) in enumerate(series.items()):
            places = [row - 0.4 + (index + 0.5) * height for row in range(len(models))]
            medians = [ratio[0] for ratio in ratios]
            errors = [
                [median - low for median, low, _ in ratios],
                [high - median for median, _, high in ratios],
            ]
            axis.barh(
                places, medians, 0.88 * height, xerr=errors if mode != 'memory' else None,
                color=COLOURS[index % len(COLOURS)], error_kw=dict(lw=1, ecolor='#333333'),
                label=label,
            )  # fmt: skip
            for place, (median, _, high) in zip(places, ratios):
                text = '' if math.isnan(median) else f'{median:.2f}'
                axis.text(high + 0.02 * largest, place, text, va='center', fontsize=8)
        axis.axvline(1, color=GREY, linestyle='--', linewidth=1, zorder=0)
        label = 'bytes / plain network' if mode == 'memory' else 'time / plain network'
        axis.set(xlabel=label, xlim=(0, 1.16 * max(largest, 1)))
        axis.grid(axis='x', alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
        columns = len(series) if sum(map(len, series)) < 40 else 1
        axis.legend(
            title=MODE_TITLES[mode], title_fontsize=12, loc='lower center', bbox_to_anchor=(0.5, 1),
            frameon=False, fontsize=9, ncols=columns, columnspacing=1.2, handlelength=1.2,
        )  # fmt: skip
    axes[0][0].set_yticks(range(len(models)), [model['name'] for model in models])
    axes[0][0].invert_yaxis()
    figure.suptitle(_conditions(results), fontsize=9, color='#555555')
    save_figure(figure, out)


def _bars(models: list[dict], mode: str) -> dict[str, list[tuple[float, float, float]]]:
    """Median and quartiles of each network's ratio, for each series of bars by its label.

    Not a number where a network was not measured.
    """
    measured, missing = [model[mode] for model in models if mode in model], (math.nan,) * 3
    series: dict[str, list[tuple[float, float, float]]] = {}
    if mode == 'memory':
        for label, key, batch_size in (
            ('kept for backward', 'kept_bytes', 'train_batch_size'),
            ('training peak', 'train_peak_bytes', 'train_batch_size'),
            ('inference peak', 'inference_peak_bytes', 'batch_size'),
        ):
            label = f'{label}, {_batch_label(memory[batch_size] for memory in measured)}'
            series[label] = [
                (model[mode]['ratio'][key],) * 3 if mode in model else missing for model in models
            ]
        return series
    for index, times in enumerate(zip(*measured)):
        label = _batch_label(record['batch_size'] for record in times)
        series[label] = [
            Spread(**model[mode][index]['ratio']) if mode in model else missing for model in models
        ]
    return series


def _batch_label(batch_sizes: Iterable[int]) -> str:
    return f'batch {" or ".join(map(str, dict.fromkeys(batch_sizes)))}'


def plot_sweep(results: dict, out: Path) -> None:
    """Plot a KW layer's time beside the plain layer's and its bounds, one column for each axis.

    Args:
        results: As in benchmark.json.
        out: The picture to write; its suffix names the format.
    """
    sweep = results['sweep']
    modes = list(dict.fromkeys(point['mode'] for point in sweep['axes']['batch_size']))
    size = (4.1 * len(sweep['axes']), 0.9 + 3.2 * len(modes))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(modes), len(sweep['axes']), squeeze=False, sharey='row')
    for row, mode in zip(axes, modes):
        for axis, (name, points) in zip(row, sweep['axes'].items()):
            points = sorted((p for p in points if p['mode'] == mode), key=lambda p: p[name])
            values = [point[name] for point in points]
            for key, label, colour in (
                ('seconds', 'KW layer', COLOURS[0]),
                ('plain_seconds', 'plain layer', GREY),
            ):
                spreads = [Spread(**point[key]) for point in points]
                milliseconds = [[1e3 * value for value in part] for part in zip(*spreads)]
                axis.plot(values, milliseconds[0], marker='o', ms=4, color=colour, label=label)
                axis.fill_between(values, *milliseconds[1:], color=colour, alpha=0.2, lw=0)
            for key, label, style in (
                ('operations_seconds', 'bound: plain layer + assembling', '--'),
                ('bytes_seconds', 'bound: bytes / bandwidth', ':'),
            ):
                bound = [1e3 * point[key] for point in points]
                axis.plot(values, bound, style, color=COLOURS[2], label=label)
            axis.set(xscale='log', yscale='log', xlabel=AXIS_LABELS[name])
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            fixed = ', '.join(
                f'{ {"batch_size": "batch", "cells": "n"}.get(key, key) } {value}'
                for key, value in sweep['middle'].items()
                if key != name
            )
            axis.set_title(f'{MODE_TITLES[mode]}: {fixed}', fontsize=9)
        row[0].set_ylabel('ms')
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False, fontsize=9)
    title = f'{describe_layer(sweep)}\n{_conditions(results)}'
    figure.suptitle(title, fontsize=9, color='#555555')
    save_figure(figure, out)


def _conditions(results: dict) -> str:
    machine, settings = results['machine'], results['settings']
    where = machine['device']
    if where == 'CPU':
        where = f'{machine["processor"]}, threads: {machine["threads"]}'
    what = f'{machine["type"]}, {machine["memory format"]}'
    return f'{where}; {what}; torch {machine["torch"]}; {settings["rounds"]} rounds'
