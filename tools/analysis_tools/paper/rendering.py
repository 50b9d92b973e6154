"""The paper's tables in Markdown, with what our models have beside what the paper prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

from mmkw.methods.kernel_warehouse.partition import partition_kernels
from mmkw.ops.mixing import Shape

from .models import BuiltModels
from .tables import NOTES, PARAMETER_TABLES, Table
from .warehouse_tables import SIZES, STAGES, SizesTable, StagesRow, StagesTable

# Differences of parameters above this part need a reason.
TOLERANCE = 0.005

PaperTable = Union[Table, SizesTable, StagesTable]
TABLES: tuple[PaperTable, ...] = tuple(
    sorted((*PARAMETER_TABLES, SIZES, STAGES), key=lambda table: table.number)
)


def render(models: BuiltModels, tables: Sequence[PaperTable] = TABLES) -> str:
    """Tables in Markdown.

    Args:
        models: those of the tables' configs.
        tables: which ones, in this order. Defaults to all, by number.

    Raises:
        ValueError: if a count of parameters differs from the paper's by more than 0.5 %, or a
            number of mixtures or cells at all, and the table has no note that says why.
    """
    return '\n'.join(
        '\n'.join([f'## Table {table.number}: {table.title}', '', *_lines(table, models)]) + '\n'
        for table in tables
    )


def _lines(table: PaperTable, models: BuiltModels) -> list[str]:
    if isinstance(table, SizesTable):
        return _sizes_lines(table, models)
    if isinstance(table, StagesTable):
        return _stages_lines(table, models)
    return _parameter_lines(table, models)


def _parameter_lines(table: Table, models: BuiltModels) -> list[str]:
    columns = ['model', 'config', 'parameters (paper)', 'parameters (ours)', 'difference']
    if table.rows[0].millions is None:
        columns = ['model', 'config', 'parameters (ours)']
    names = [f'{column} (paper)' for column in table.columns]
    lines = _head(columns + names, texts=2)
    footnotes: list[str] = []
    for row in table.rows:
        parameters = models.parameters(row.config)
        cells = [row.model, f'`{row.config}`']
        if row.millions is not None:
            difference = parameters / 1e6 / row.millions - 1
            if abs(difference) > TOLERANCE and row.config not in NOTES:
                raise ValueError(
                    f'{row.config} has {parameters:,} parameters, but the paper prints '
                    f'{row.millions:.2f}M; write the reason of the difference into NOTES'
                )
            printed = f'{row.millions:.2f}'
            is_equal = f'{parameters / 1e6:.2f}' == printed
            cells += [f'{printed}M', f'{parameters:,}', '' if is_equal else f'{difference:+.1%}']
            if row.config in NOTES:
                counts = f'The paper prints {printed}M, our model has {parameters:,}.'
                cells[-1] += _refer(footnotes, f'{counts} {NOTES[row.config]}')
        else:
            cells.append(f'{parameters:,}')
        lines.append(_line([*cells, *row.values]))
    return lines + _below(footnotes, table.remark)


def _sizes_lines(table: SizesTable, models: BuiltModels) -> list[str]:
    columns = ['backbone', 'config', 'b', 'm (paper)', 'm (ours)', 'n (paper)', 'n (ours)']
    lines = _head(columns, texts=len(columns))
    footnotes: list[str] = []
    for row in table.rows:
        warehouses = models.warehouses(row.config)
        mixtures = tuple(warehouse.num_mixtures for warehouse in warehouses)
        cells = tuple(warehouse.num_cells for warehouse in warehouses)
        backbone = row.backbone
        if (mixtures, cells) != (row.mixtures, row.cells):
            if row.config not in table.notes:
                raise ValueError(
                    f'{row.config} has m = {mixtures} and n = {cells}, but the paper prints '
                    f'm = {row.mixtures} and n = {row.cells}; write the reason of the difference '
                    f"into the table's notes"
                )
            backbone += _refer(footnotes, table.notes[row.config])
        sizes = (row.mixtures, mixtures, row.cells, cells)
        numbers = [', '.join(map(str, size)) for size in sizes]
        lines.append(_line([backbone, f'`{row.config}`', row.budget, *numbers]))
    return lines + _below(footnotes, table.remark)


def _stages_lines(table: StagesTable, models: BuiltModels) -> list[str]:
    columns = ['layer', 'kernel', 'original stage']
    columns += ['cell of the original stage (paper)', 'cell of the original stage (ours)']
    columns += ['reassigned stage (paper)', 'reassigned stage (ours)']
    columns += ['cell of the reassigned stage (paper)', 'cell of the reassigned stage (ours)']
    lines = _head(columns, texts=len(columns))
    warehouses = models.warehouses(table.config)
    originals: dict[str, dict[str, Shape]] = {}
    for warehouse in warehouses:
        for layer, kernel in warehouse.kernels.items():
            originals.setdefault(_stage(layer), {})[layer] = kernel.kernel_shape
    original_cells = {
        stage: _size(partition_kernels(shapes).cell_shape) for stage, shapes in originals.items()
    }
    printed = {row.layer: row for row in table.rows}
    for stage, warehouse in enumerate(warehouses, start=1):
        for name, kernel in warehouse.kernels.items():
            layer = name.removeprefix('backbone.')
            row = printed.get(layer, StagesRow(layer, '', '', ''))
            original = _stage(name)
            cells = [f'`{layer}`', _size(kernel.kernel_shape), original]
            cells += [row.original_cell, original_cells[original], row.stage, f'{stage}']
            lines.append(_line([*cells, row.cell, _size(warehouse.cell_shape)]))
    return lines + _below([], table.remark)


def _stage(layer: str) -> str:
    """The plain network's stage of a layer, as in ``backbone.layer2.0.conv1``."""
    return layer.split('.')[1].removeprefix('layer')


def _size(shape: Shape) -> str:
    """A kernel or cell as the paper writes it: height, width, input and output channels."""
    out_channels, in_channels, *spatial = shape
    return 'x'.join(map(str, (*spatial, in_channels, out_channels)))


def _head(columns: Sequence[str], texts: int) -> list[str]:
    """The first lines of a table; its first columns hold texts, the others numbers."""
    return [_line(columns), _line(['---'] * texts + ['---:'] * (len(columns) - texts))]


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _refer(footnotes: list[str], footnote: str) -> str:
    """Add a footnote, unless it is there already, and refer to it."""
    if footnote not in footnotes:
        footnotes.append(footnote)
    return f' ({footnotes.index(footnote) + 1})'


def _below(footnotes: Sequence[str], remark: str) -> list[str]:
    texts = [f'({number}) {footnote}' for number, footnote in enumerate(footnotes, start=1)]
    return [line for text in (*texts, remark) if text for line in ('', text)]
