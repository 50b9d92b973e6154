"""Tables of what a benchmark measured, in Markdown, beside the numbers of the paper."""

from __future__ import annotations

from paper import MEMORY, PARAMETER_TABLES, SPEED, printed

from mmkw.analysis.operations import Operations

MODE_TITLES = {'inference': 'Inference', 'train': 'Training step', 'memory': 'Memory'}
AXIS_LABELS = {
    'batch_size': 'batch size',
    'resolution': 'resolution (pixels a side)',
    'cells': 'cells in the warehouse, n',
}


def _paper_costs() -> dict[str, tuple[float, float, float]]:
    """Tables 12 and 16: images per second, then MB in training and in inference, on a Titan X."""
    costs = {}
    for row in next(table.rows for table in PARAMETER_TABLES if table.columns == SPEED):
        memory = (float(value.replace(',', '')) for value in printed(row.config, MEMORY).values)
        name = row.config.split('/')[1].partition('_')[0].removeprefix('kw-')
        costs[name] = (float(row.values[1]), *memory)
    return costs


PAPER = _paper_costs()
PAPER_MODELS = tuple(name for name in PAPER if name.endswith('x'))


def paper_train_batch_size(network: str) -> int:
    """The batch size of training in Tables 12 and 16."""
    return 32 if 'mobilenet' in network else 128


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
    if 'host' in results:
        lines += _host_table(results['host'])
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


def _host_table(records: list[dict]) -> list[str]:
    rows = [[record['name'], str(record['launches']), *_spreads(record)] for record in records]
    columns = ['model', 'launches', 'microseconds', 'time / plain']
    note = (
        'Forward and backward pass of a training step of 2 images, one thread. Launches: '
        'operations of PyTorch without views and allocations. As released: the same network by '
        "the sequence of operations of the authors' code, all kernels kept. Layer: 3 x 3, 64 "
        'channels, 8 x 8 pixels.'
    )
    return _table('Host', note, columns, rows)


def _spreads(record: dict) -> list[str]:
    median, low, high = (record['microseconds'][key] for key in ('median', 'low', 'high'))
    return [f'{median:,.0f} ({low:,.0f} - {high:,.0f})', _ratio(record['ratio'])]


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
            f'One {describe_layer(sweep)}. Bounds: the plain layer plus assembling at the rate '
            f'of a matrix product; cells, attention, input and output once through the memory.'
        )
        lines += _table(f'Sweep over {AXIS_LABELS[axis]}', note, columns, rows)
    return lines


def sweep_bound(point: dict) -> float:
    """Seconds that a layer needs for its operations or for its bytes, whichever is more."""
    return max(point['operations_seconds'], point['bytes_seconds'])


def describe_layer(sweep: dict) -> str:
    k, channels = sweep['kernel_size'], sweep['channels']
    return f'KWConv2d of {k} x {k}, {channels} to {channels} channels, m = {k * k}'


def _milliseconds(spread: dict) -> str:
    median, low, high = (1e3 * spread[key] for key in ('median', 'low', 'high'))
    return f'{median:.4g} ({low:.4g} - {high:.4g})'


def _ratio(spread: dict) -> str:
    return f'{spread["median"]:.2f} ({spread["low"]:.2f} - {spread["high"]:.2f})'
