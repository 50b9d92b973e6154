"""Tables and plots of what benchmark.py measures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

from mmkw.analysis import Operations, Spread  # noqa: E402

MODE_TITLES = {'inference': 'Inference', 'train': 'Training step', 'memory': 'Memory'}
AXIS_LABELS = {
    'batch_size': 'batch size',
    'resolution': 'resolution (pixels a side)',
    'cells': 'cells in the warehouse, n',
}
COLOURS = ('#1f5fa8', '#7fb0dd', '#d8730f', '#3a923a')
GREY = '#7f7f7f'

# Tables 12 and 16: images per second, then MB in training and in inference, on a Titan X.
PAPER = {
    'resnet50': (647.0, 11084, 1249),
    'resnet50-1d2x': (227.8, 23323, 2121),
    'resnet50-1x': (265.4, 23231, 2200),
    'resnet50-4x': (191.1, 24905, 2762),
    'mobilenet-v2-w100': (1410.8, 2486, 1083),
    'mobilenet-v2-w100-1d2x': (926.0, 3002, 1076),
    'mobilenet-v2-w100-1x': (798.7, 2823, 1096),
    'mobilenet-v2-w100-4x': (786.9, 2916, 1144),
}


def make_tables(results: dict) -> str:
    """The results in Markdown."""
    rates = results['rates']
    lines = ['# Benchmark', '']
    lines += [f'- {key}: {value}' for key, value in results['machine'].items()]
    lines += [
        f'- measured rates, multiply-adds per second: {rates["matmul"] / 1e9:.0f} G (matrix '
        f'product), {rates["convolution"] / 1e9:.0f} G (3 x 3 convolution); '
        f'{rates["bandwidth"] / 1e9:.1f} GB/s (copy, read and written)',
        f'- {results["settings"]["resolution"]} x {results["settings"]["resolution"]} pixels; '
        f'medians of {results["settings"]["rounds"]} alternating rounds, quartiles in brackets',
    ]
    models = results['models']
    if models:
        lines += _cost_table(models)
    for mode in ('inference', 'train'):
        if any(mode in model for model in models):
            lines += _time_table(models, mode)
    if any('memory' in model for model in models):
        lines += _memory_table(models)
    if results['settings']['protocol'] == 'paper':
        lines += _paper_table(models)
    if 'sweep' in results:
        lines += _sweep_tables(results['sweep'])
    return '\n'.join(lines) + '\n'


def _table(title: str, note: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers."""
    rule = ['---'] + ['---:'] * (len(columns) - 1)
    lines = [f'| {" | ".join(cells)} |' for cells in [columns, rule, *rows]]
    return ['', f'## {title}', '', note, '', *lines]


def _cost_table(models: list[dict]) -> list[str]:
    rows, has_folded = [], any(model['folded_bytes'] for model in models)
    for model in models:
        count = Operations(**model['operations_per_image'])
        parts = (count.convolution, count.assembling, count.attention, count.total)
        parameters = f'{model["parameters"]:,}'
        rows.append([model['name'], parameters, *(f'{part / 1e6:,.1f}' for part in parts)])
        if has_folded:
            rows[-1].append(f'{model["folded_bytes"] / 1e6:,.1f}')
    columns = ['model', 'parameters', 'convolution', 'assembling', 'attention', 'total']
    note = 'Millions of multiply-adds for one image, in the formulas of the paper.'
    if has_folded:
        columns.append('folded, MB')
        note += ' Folded: memory for the tensors that are mixed instead of cells.'
    return _table('Operations', note, columns, rows)


def _time_table(models: list[dict], mode: str) -> list[str]:
    rows = []
    for model, times in _by_batch_size(models, mode):
        median = times['seconds']['median']
        bounds = (times['bound_seconds'], times['plain_and_assembling_seconds'])
        rows.append(
            [
                model['name'],
                str(times['batch_size']),
                _milliseconds(times['seconds']),
                f'{times["images_per_second"]:.1f}',
                _ratio(times['ratio']),
                *(f'{1e3 * bound:.4g} ({median / bound:.2f})' for bound in bounds),
            ]
        )
    columns = ['model', 'batch', 'ms', 'images/s', 'time / plain', 'bound, ms (time / bound)']
    columns.append('plain + assembling, ms (time / that)')
    note = (
        'Ratio to the plain network of the same round. Bound: all operations at the measured '
        'rates of a convolution and a matrix product; beside it the measured time of the plain '
        'network plus assembling and attention at the rate of a matrix product. Small maps can '
        'take less: cells times pixels are then fewer products than a kernel for each sample.'
    )
    if mode == 'train':
        note += ' Training takes three times the operations of inference.'
    return _table(MODE_TITLES[mode], note, columns, rows)


def _by_batch_size(models: list[dict], mode: str) -> list[tuple[dict, dict]]:
    pairs = [(model, times) for model in models for times in model.get(mode, ())]
    return sorted(pairs, key=lambda pair: pair[1]['batch_size'])


def _memory_table(models: list[dict]) -> list[str]:
    rows = []
    for model in (model for model in models if 'memory' in model):
        memory = model['memory']
        row = [model['name'], f'{memory["train_batch_size"]}, {memory["batch_size"]}']
        for key, ratio in memory['ratio'].items():
            row += [f'{memory[key] / 1e6:,.1f}', f'{ratio:.2f}']
        rows.append(row)
    columns = ['model', 'batch (training, inference)', 'kept for backward', '/ plain']
    columns += ['training peak', '/ plain', 'inference peak', '/ plain']
    note = (
        'MB (10^6 bytes). Kept: what autograd saves for the backward pass, without parameters, '
        'buffers and images. Peaks: the most that tensors occupy at once, all included.'
    )
    return _table('Memory', note, columns, rows)


def _paper_table(models: list[dict]) -> list[str]:
    def beside(own: float | None, own_plain, paper: float, paper_plain: float) -> list[str]:
        measured = '' if own is None else f'{own:,.1f} ({own / own_plain:.2f})'
        return [measured, f'{paper:,.1f} ({paper / paper_plain:.2f})']

    by_name = {model['name']: model for model in models}
    rows = []
    for name, model in by_name.items():
        own, plain = PAPER.get(name.replace(' (reference)', '')), PAPER.get(model['plain'])
        if own and plain:
            row = [name]
            for index, read in enumerate((_speed, _train_megabytes, _inference_megabytes)):
                row += beside(read(model), read(by_name[model['plain']]), own[index], plain[index])
            rows.append(row)
    columns = ['model', 'images/s', 'paper', 'training, MB', 'paper', 'inference, MB', 'paper']
    note = (
        "Tables 12 and 16 of the paper, a Titan X's; in brackets relative to the plain network. "
        'Ours are peaks of what tensors occupy; how the paper measured memory is not known.'
    )
    return _table("Beside the paper's numbers", note, columns, rows)


def _speed(model: dict) -> float | None:
    return model['inference'][-1]['images_per_second'] if 'inference' in model else None


def _train_megabytes(model: dict) -> float | None:
    return model['memory']['train_peak_bytes'] / 1e6 if 'memory' in model else None


def _inference_megabytes(model: dict) -> float | None:
    return model['memory']['inference_peak_bytes'] / 1e6 if 'memory' in model else None


def _sweep_tables(sweep: dict) -> list[str]:
    lines = []
    columns = ['mode', 'batch', 'resolution', 'n', 'ms', 'plain, ms', 'time / plain']
    columns += ['operations, ms', 'bytes, ms', 'time / larger bound']
    for axis, points in sweep['axes'].items():
        rows = [
            [
                point['mode'],
                *(str(point[key]) for key in sweep['axes']),
                _milliseconds(point['seconds']),
                _milliseconds(point['plain_seconds']),
                _ratio(point['ratio']),
                *(f'{1e3 * point[key]:.3g}' for key in ('operations_seconds', 'bytes_seconds')),
                f'{point["seconds"]["median"] / sweep_bound(point):.2f}',
            ]
            for point in points
        ]
        note = (
            f'One {_describe_layer(sweep)}. Bounds: the plain layer plus assembling at the rate '
            f'of a matrix product; cells, attention, input and output once through the memory.'
        )
        lines += _table(f'Sweep over {AXIS_LABELS[axis]}', note, columns, rows)
    return lines


def sweep_bound(point: dict) -> float:
    """Seconds that a layer needs for its operations or for its bytes, whichever is more."""
    return max(point['operations_seconds'], point['bytes_seconds'])


def _describe_layer(sweep: dict) -> str:
    k, channels = sweep['kernel_size'], sweep['channels']
    return f'KWConv2d of {k} x {k}, {channels} to {channels} channels, m = {k * k}'


def _milliseconds(spread: dict) -> str:
    median, low, high = (1e3 * spread[key] for key in ('median', 'low', 'high'))
    return f'{median:.4g} ({low:.4g} - {high:.4g})'


def _ratio(spread: dict) -> str:
    return f'{spread["median"]:.2f} ({spread["low"]:.2f} - {spread["high"]:.2f})'


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
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.8 + 4.1 * len(panels), 1.9 + 0.22 * most * len(models)),
        sharey=True,
        squeeze=False,
        layout='constrained',
    )
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
    _save(figure, out)


def _bars(models: list[dict], mode: str) -> dict[str, list[tuple[float, float, float]]]:
    """Median and quartiles of each network's ratio, for each series of bars by its label.

    Not a number where a network was not measured.
    """
    measured, missing = [model[mode] for model in models if mode in model], (math.nan,) * 3
    series = {}
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
            tuple(Spread(**model[mode][index]['ratio'])) if mode in model else missing
            for model in models
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
    figure, axes = plt.subplots(
        len(modes),
        len(sweep['axes']),
        figsize=(4.1 * len(sweep['axes']), 0.9 + 3.2 * len(modes)),
        squeeze=False,
        sharey='row',
        layout='constrained',
    )
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
    title = f'{_describe_layer(sweep)}\n{_conditions(results)}'
    figure.suptitle(title, fontsize=9, color='#555555')
    _save(figure, out)


def _conditions(results: dict) -> str:
    machine, settings = results['machine'], results['settings']
    where = machine['device']
    if where == 'CPU':
        where = f'{machine["processor"]}, threads: {machine["threads"]}'
    what = f'{machine["type"]}, {machine["memory format"]}'
    return f'{where}; {what}; torch {machine["torch"]}; {settings["rounds"]} rounds'


def _save(figure, out: Path) -> None:
    beside = out.with_name(f'.{out.name}')
    figure.savefig(beside, dpi=150)
    plt.close(figure)
    os.replace(beside, out)


def write_report(results: dict, out: Path) -> None:
    """Write benchmark.json and .md, and benchmark.png and sweep.png where there is what to plot."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {'benchmark.json': json.dumps(results, indent=1) + '\n'}
    texts['benchmark.md'] = make_tables(results)
    for name, text in texts.items():
        beside = out / f'.{name}'
        beside.write_text(text, encoding='utf-8')
        os.replace(beside, out / name)
    if results['models']:
        plot_models(results, out / 'benchmark.png')
    if 'sweep' in results:
        plot_sweep(results, out / 'sweep.png')
